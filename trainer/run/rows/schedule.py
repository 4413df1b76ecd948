"""When a round is due, and why not; whether it may begin, and what it waits for. Pure.

Says nothing of which rows it takes (plan.py). An open round is always due: learner.py asks for it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainer.run.publish.registry import ServingState
from trainer.run.rounds import NewPreferences
from trainer.sections.training import DpoSection, RoundKind
from trainer.settings import TrainerSection

TIES_FACTOR = 2  # so many times the decisive preferences make a round due when most are ties


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What decides whether a round is due.

    num_left: new decisive preferences that the last round, which was published, had no room for. num_demonstrations: new
    ones. num_rounds: that have ended. since_s: seconds since the last round ended, or the trainer began. is_requested: an
    operator asked for a round.
    """

    new: NewPreferences
    num_left: int = 0
    num_demonstrations: int = 0
    num_rounds: int = 0
    since_s: float = 0.0
    is_requested: bool = False


@dataclass(frozen=True)
class Due:
    """Whether a round is due, why or why not, and how much of what it needs is there, 0 to 1. kind: of that round."""

    is_due: bool
    reason: str
    progress: float
    kind: RoundKind = "dpo"


def explain_round(situation: Situation, settings: TrainerSection) -> Due:
    """Whether a round is due: of the kind whose turn it is, or else of the next kind that is due."""
    kinds = list_turns(settings.round_kinds, situation.num_rounds)
    if situation.is_requested:
        return _explain_request(situation, kinds)
    looked_at = [_explain_kind(kind, situation, settings) for kind in kinds]
    return next((due for due in looked_at if due.is_due), looked_at[0])


def list_turns(kinds: Sequence[RoundKind], num_rounds: int) -> list[RoundKind]:
    """The kinds that a round may have, each once: the one whose turn it is after so many rounds, then those that follow."""
    turn = num_rounds % len(kinds)
    return list(dict.fromkeys([*kinds[turn:], *kinds[:turn]]))


def _explain_request(situation: Situation, kinds: Sequence[RoundKind]) -> Due:
    kind = next((kind for kind in kinds if kind != "sft" or situation.num_demonstrations), kinds[0])
    if kind == "sft":
        num, noun = situation.num_demonstrations, "demonstrations"
    else:
        num, noun = situation.new.decisive + situation.num_left, "decisive preferences"
    return Due(True, f"an operator asked for a round; {num} new {noun}", 1.0, kind)


def _explain_kind(kind: RoundKind, situation: Situation, settings: TrainerSection) -> Due:
    due = _explain_sft(situation, settings) if kind == "sft" else _explain_preferences(situation, settings)
    return replace(due, kind=kind)


def _explain_sft(situation: Situation, settings: TrainerSection) -> Due:
    num, required = situation.num_demonstrations, settings.sft_every_demonstrations
    if num >= required:
        return Due(True, f"{num} new demonstrations", 1.0)
    return Due(False, f"{num} of {required} new demonstrations", num / required)


def _explain_preferences(situation: Situation, settings: TrainerSection) -> Due:
    new, required = situation.new, settings.round_every_preferences
    if new.decisive >= required:
        return Due(True, f"{new.decisive} new decisive preferences", 1.0)
    if situation.num_left and new.decisive + situation.num_left >= required:
        reason = f"{new.decisive} new decisive preferences and {situation.num_left} that the last round left"
        return Due(True, reason, 1.0)
    if new.total >= TIES_FACTOR * required:
        return Due(True, f"{new.total} new preferences, {new.decisive} of them decisive", 1.0)
    minutes = settings.round_every_minutes
    if minutes and situation.since_s >= 60 * minutes and new.decisive >= settings.round_min_preferences:
        since = f"{situation.since_s / 60:.0f} minutes and {new.decisive} new decisive preferences since the last round"
        return Due(True, since, 1.0)
    share = max(new.decisive / required, new.total / (TIES_FACTOR * required))
    return Due(False, f"{new.decisive} of {required} new decisive preferences", share)


def explain_wait(state: ServingState, untried: str | None, is_here: bool, *, may_overlap: bool) -> str:
    """Why a round that is due must wait; "" if it may begin.

    untried: the newest checkpoint, if it has not been on trial. is_here: whether the stable checkpoint's directory is on
    this machine. may_overlap: rounds may train while a canary is on trial.
    """
    if state.rollout and not may_overlap:
        return f"rollout {state.rollout} is {state.rollout_phase}"
    if untried and not may_overlap:
        return f"{untried} has not been on trial yet"
    if state.stable is None:
        return "the gateway has no stable checkpoint yet"
    if not is_here:
        return f"no directory here holds the stable checkpoint {state.stable}"
    return ""


def is_restart_due(
    dpo: DpoSection, published_since_restart: int, num_rows: int, *, has_chain_failed: bool = False
) -> bool:
    """Whether a DPO round begins from the base on a full replay: once every so many published rounds, where there are
    restart_min_rows rows, and after one that went on from stable and was stopped. Never where restart_every is 0.

    A restart counts once it ended, whether or not the gate let it pass: after one that was stopped the next goes on from stable.
    Chains of adapters fail to recover (2505.18126): in a run of 3,000 choices one bad link stopped all that would follow it. But
    what a chain has made of few choices, one round on them does not make again.
    """
    is_old = published_since_restart >= dpo.restart_every and num_rows >= dpo.restart_min_rows
    return bool(dpo.restart_every) and (is_old or has_chain_failed)


def estimate_seconds_left(share_done: float, share_at_start: float, elapsed_s: float) -> float | None:
    """Seconds that the rest takes at the pace so far; None while nothing has been done since share_at_start."""
    done = share_done - share_at_start
    if done <= 0 or elapsed_s <= 0:
        return None
    return max(0.0, (1.0 - share_done) / done * elapsed_s)
