"""`prefloop bias`: do people choose by place or by time, and not by what an answer says?"""

from __future__ import annotations

import msgspec

from prefloop.gateway_client import GatewayClient, JsonOption, with_gateway
from prefloop.terminal import make_table, plain


class Interval(msgspec.Struct, frozen=True):
    """An estimate with its 95% interval, made of `num` users."""

    num: int
    estimate: float
    low: float
    high: float


class Bias(msgspec.Struct, frozen=True):
    """Each user counts once. shown_first, finished_first: the share who chose that answer; finish_effect: a difference."""

    is_biased: bool
    shown_first: Interval
    finished_first: Interval
    finish_effect: Interval


class BiasReport(Bias, frozen=True):
    """Of comparisons picked at random, which alone judge; by_share: of each way of picking."""

    by_share: dict[str, Bias] = {}


@with_gateway
def show_bias(client: GatewayClient, as_json: JsonOption = False) -> None:
    """Show whether people choose by an answer's place, or by which was there first."""
    found = client.show("GET", "/operator/v1/feedback/bias", BiasReport, as_json=as_json)
    if found is None:
        return
    plain.print(describe_bias(found))
    table = make_table("picked", "users", "chose the first", "chose the faster", "effect of speed", whole=("users",))
    for name, bias in {"at random": found, **found.by_share}.items():
        table.add_row(
            name,
            f"{bias.shown_first.num:,}",
            format_share(bias.shown_first),
            format_share(bias.finished_first),
            format_difference(bias.finish_effect),
        )
    plain.print(table)


def describe_bias(bias: Bias) -> str:
    """The verdict in a sentence."""
    if not bias.shown_first.num:
        return "Nobody has chosen between answers that were picked at random yet."
    if bias.is_biased:
        return "People choose by place or by time: an interval leaves out what chance would give (50%, or no effect)."
    return "No effect of place or time is seen: the intervals hold what chance would give (50%, or no effect)."


def format_share(found: Interval) -> str:
    """`52% (45% to 60%)`, "" of nobody."""
    return f"{found.estimate:.0%} ({found.low:.0%} to {found.high:.0%})" if found.num else ""


def format_difference(found: Interval) -> str:
    """`+3% (-10% to +16%)`, "" of nobody."""
    return f"{found.estimate:+.0%} ({found.low:+.0%} to {found.high:+.0%})" if found.num else ""
