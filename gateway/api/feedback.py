"""What operators ask of what people said."""

import asyncio
from dataclasses import fields

import msgspec

from feedback.quality.bias import Interval, Vote, load_votes, measure_bias
from gateway.access.keys import Identity
from gateway.api.routes import OperatorRoutes
from gateway.serving.context import Context

_NUM_VOTES = 20_000


class BiasView(msgspec.Struct, frozen=True):
    """Each user counts once. `finish_effect`: how much likelier the answer shown first is chosen when it was complete first."""

    is_biased: bool
    shown_first: Interval
    finished_first: Interval
    finish_effect: Interval


def add_feedback_route(routes: OperatorRoutes, context: Context) -> None:
    """GET /operator/v1/feedback/bias."""

    @routes.add(
        "GET", "/feedback/bias", "Show whether people choose by place, or by which answer was there first",
        {200: BiasView},
    )  # fmt: skip
    async def show_bias(_: Identity) -> BiasView:
        bias = measure_bias(await asyncio.to_thread(_load, context))
        return BiasView(bias.is_biased, **{each.name: getattr(bias, each.name) for each in fields(bias)})


def _load(context: Context) -> list[Vote]:
    with context.database.connect() as conn:
        return load_votes(conn, _NUM_VOTES)
