"""What an operator sees of people's preference: of all, by slice, by place on the page; and what else may please them."""

import math

import msgspec

from gateway.rollout.pure.findings import Findings
from gateway.rollout.pure.guardrails import ACCEPTED
from gateway.rollout.pure.positions import PositionTally
from gateway.rollout.pure.rules import Rules
from gateway.rollout.pure.slices import Slice
from gateway.rollout.pure.tripwires import TRIPPED, Tripwire, say_tripwire
from gateway.rollout.pure.verdict import limit_exp
from gateway.tables.rows import RolloutRow


class PositionView(msgspec.Struct, frozen=True, kw_only=True):
    """Decided duels with the canary's answer in one place. net_win_rate: wins less losses as a share of them; null without any."""

    votes: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    net_win_rate: float | None


class PositionsView(msgspec.Struct, frozen=True, kw_only=True):
    """The canary by its place on the page. first_share: of decided duels, how many preferred what was shown first, whosever it was."""

    first: PositionView
    second: PositionView
    first_share: float | None


class EvidenceView(msgspec.Struct, frozen=True, kw_only=True):
    """Preference evidence. E-values, not logarithms; `net_win_rate` is the mean of (wins - losses) / cap over users.

    delta: the net win rate that the whole interval must be above. unit: what `users` counts, "user" or "comparison". waiting: users
    asked who have not entered. fragility: users who would have to vanish, worst first, until the evidence is below its threshold.
    both_bad_share: of votes.
    """

    e: float
    threshold: float
    e_inferior: float
    unit: str
    users: int
    min_users: int
    max_users: int
    waiting: int
    fragility: int
    votes: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    net_win_rate: float
    delta: float
    ci_low: float
    ci_high: float
    top_user_share: float
    both_bad_share: float
    positions: PositionsView


class SliceView(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence of one kind of requests, as apps tag them: `name` "language", `value` "de". status: "fail" if its users prefer
    stable, which forbids a promotion, "accepted" if they do and `rollout.accept_slices` lists it, "pass" if they prefer the canary,
    or "not enough data".

    users: who have entered; waiting: who have not. net: their net win rate, lower to upper its 90% interval. log_e_inferior: the
    natural logarithm of the evidence that they prefer stable, and log_threshold the line from which they do.
    """

    name: str
    value: str
    users: int
    waiting: int
    net: float
    lower: float
    upper: float
    log_e_inferior: float
    log_threshold: float
    status: str


class ShadowView(msgspec.Struct, frozen=True, kw_only=True):
    """The stage before the canary serves anybody. answers: users of whom both answers were seen.

    It goes on at `min_answers` and after `min_s`.
    """

    answers: int
    min_answers: int
    min_s: float
    share: float


class TripwireView(msgspec.Struct, frozen=True, kw_only=True):
    """What people may like about the canary that is no merit: "length", "flattery", "refusals", "questions", or "reward".

    status: "tripped", which forbids a promotion, "accepted", "quiet" or "not enough data". difference: the mean over `users`,
    the canary's less stable's, which trips when it is proven to be above the margin; of "reward", people's net win rate. foreseen:
    the reward model's gain, null of others. text: what has tripped, in words.
    """

    name: str
    status: str
    difference: float
    margin: float
    users: int
    e: float
    threshold: float
    foreseen: float | None
    text: str


def show_evidence(findings: Findings, rules: Rules, row: RolloutRow) -> EvidenceView:
    """The preference evidence of all users."""
    evidence = findings.evidence
    return EvidenceView(
        e=limit_exp(evidence.log_e),
        threshold=1 / rules.alpha,
        e_inferior=limit_exp(evidence.log_e_inferior),
        unit=rules.evidence_unit,
        users=evidence.users,
        min_users=rules.min_users,
        max_users=rules.max_users * row.num_tries,
        waiting=evidence.waiting,
        fragility=findings.fragility,
        votes=evidence.votes,
        wins=evidence.wins,
        losses=evidence.losses,
        ties=evidence.ties,
        both_bad=evidence.both_bad,
        net_win_rate=evidence.net,
        delta=rules.delta,
        ci_low=evidence.low,
        ci_high=evidence.high,
        top_user_share=evidence.top_user_share,
        both_bad_share=evidence.both_bad / max(1, evidence.votes),
        positions=PositionsView(
            first=_show_position(findings.positions.first),
            second=_show_position(findings.positions.second),
            first_share=findings.positions.first_share,
        ),
    )


def _show_position(tally: PositionTally) -> PositionView:
    return PositionView(
        votes=tally.votes, wins=tally.wins, losses=tally.losses, ties=tally.ties, both_bad=tally.both_bad,
        net_win_rate=(tally.wins - tally.losses) / tally.votes if tally.votes else None,
    )  # fmt: skip


def show_tripwire(one: Tripwire, rules: Rules) -> TripwireView:
    """One tripwire."""
    return TripwireView(
        name=one.name, status=one.status, difference=one.difference, margin=one.margin, users=one.users,
        e=limit_exp(one.log_e), threshold=1 / rules.alpha, foreseen=one.gain,
        text=say_tripwire(one) if one.status in (TRIPPED, ACCEPTED) else "",
    )  # fmt: skip


def show_shadow(findings: Findings, rules: Rules) -> ShadowView:
    """How far shadowing is."""
    shadow = rules.shadow
    return ShadowView(
        answers=findings.guardrails.users, min_answers=shadow.min_answers, min_s=shadow.min_s, share=shadow.share
    )


def show_slice(one: Slice, rules: Rules) -> SliceView:
    """One slice."""
    return SliceView(
        name=one.name, value=one.value, users=one.users, waiting=one.waiting, net=one.net, lower=one.low, upper=one.high,
        log_e_inferior=one.log_e_inferior, log_threshold=math.log(rules.slice_threshold), status=one.status,
    )  # fmt: skip
