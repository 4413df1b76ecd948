"""What operators ask of what people said."""

import asyncio

import msgspec

from feedback.quality.bias import (
    Bias,
    Interval,
    Vote,
    list_judging,
    load_votes,
    measure_bias,
    measure_bias_by_share,
)
from gateway.access.keys import Identity
from gateway.api.routes import OperatorRoutes
from gateway.serving.context import Context

_NUM_VOTES = 20_000


class ShareBias(msgspec.Struct, frozen=True):
    """Each user counts once. `finish_effect`: how much likelier the answer shown first is chosen when it was complete first."""

    is_biased: bool
    shown_first: Interval
    finished_first: Interval
    finish_effect: Interval


class BiasView(ShareBias, frozen=True):
    """Of comparisons whose answers were picked at random, which alone judge; `by_share` has each way of picking."""

    by_share: dict[str, ShareBias]


def add_feedback_route(routes: OperatorRoutes, context: Context) -> None:
    """GET /operator/v1/feedback/bias."""

    @routes.add(
        "GET", "/feedback/bias", "Show whether people choose by place, or by which answer was there first",
        {200: BiasView},
    )  # fmt: skip
    async def show_bias(_: Identity) -> BiasView:
        votes = await asyncio.to_thread(_load, context)
        bias = measure_bias(list_judging(votes))
        by_share: dict[str, ShareBias] = {
            share: ShareBias(*_list_fields(found)) for share, found in measure_bias_by_share(votes).items()
        }
        return BiasView(*_list_fields(bias), by_share)


def _list_fields(bias: Bias) -> tuple[bool, Interval, Interval, Interval]:
    return bias.is_biased, bias.shown_first, bias.finished_first, bias.finish_effect


def _load(context: Context) -> list[Vote]:
    with context.database.connect() as conn:
        return load_votes(conn, _NUM_VOTES)
