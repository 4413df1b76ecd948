"""Reads what a rollout is weighed by: the voters and first requests of its pair, and of its late stage those alone."""

from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter

from sqlalchemy import Connection

from feedback.duels import DuelRow, has_reported_harm, load_duels
from gateway.rollout.desired_state import name_observed
from gateway.rollout.pure.divergence import DivergenceTally, tally_divergences
from gateway.rollout.pure.findings import LATE_CAP, LATE_WINDOW_S, Inputs
from gateway.rollout.pure.positions import tally_positions
from gateway.rollout.pure.rules import Rules
from gateway.rollout.pure.slices import tally_slices
from gateway.rollout.pure.transitions import SHADOWING
from gateway.rollout.pure.tripwires import tally_traits
from gateway.rollout.pure.users import Duel, Voter, sum_up
from gateway.tables.checkpoints import get_checkpoint
from gateway.tables.divergences import load_divergences
from gateway.tables.observations import load_observations
from gateway.tables.rollouts import list_tries
from gateway.tables.rows import RolloutRow


def read_inputs(conn: Connection, row: RolloutRow, rules: Rules, now: float) -> Inputs:
    """All of it, as the tables hold it at this moment. Of known users; by comparison, each of theirs is a voter alone."""
    if row.started_at is None:  # nobody was served by it: it is shadowed, or ended there
        return Inputs(now, [], load_observations(conn, [f"{row.id}.{SHADOWING}"]), num_tries=row.num_tries)
    tries = list_tries(conn, row)
    by_comparison = rules.evidence_unit == "comparison"
    known = (duel for duel in load_duels(conn, tries) if duel.user)
    has_screen = bool(rules.harm_screen)
    duels = [
        _convert(duel, duel.comparison_id if by_comparison else duel.user, has_screen=has_screen) for duel in known
    ]
    observed = name_observed(row)
    late_voters = None
    if observed != row.id:
        late = [duel for duel in duels if duel.asked_at >= row.phase_started_at]
        late_voters = sum_up_voters(late, cap=LATE_CAP, window_s=min(rules.window_s, LATE_WINDOW_S))
    return Inputs(
        now=now,
        voters=sum_up_voters(duels, cap=rules.cap, window_s=rules.window_s),
        observed=load_observations(conn, tries),
        late_voters=late_voters,
        late_observed=() if late_voters is None else load_observations(conn, [observed]),
        num_tries=row.num_tries,
        sees_harm="harm" not in rules.accept_blind
        and (has_reported_harm(conn) or (has_screen and not all(duel.unscreened for duel in duels))),
        slices=tally_slices(duels, cap=rules.cap, window_s=rules.window_s, now=now, max_slices=rules.max_slices),
        positions=tally_positions(duels),
        traits=tally_traits(duels),
        reward_gain=_find_reward_gain(conn, row),
        divergences=DivergenceTally()
        if rules.kl is None
        else tally_divergences(load_divergences(conn, tries), rules.kl.margin),
    )


def sum_up_voters(duels: Iterable[Duel], *, cap: int, window_s: float) -> list[Voter]:
    """The users who were asked, whether they have chosen or not. duels: user by user."""
    return [sum_up(list(own), cap=cap, window_s=window_s) for _, own in groupby(duels, attrgetter("user"))]


def _find_reward_gain(conn: Connection, row: RolloutRow) -> float | None:
    """What the reward model foresaw of the canary before it was published; an A/A copy is nothing new."""
    checkpoint = None if row.aa else get_checkpoint(conn, row.checkpoint)
    return None if checkpoint is None else checkpoint.parsed.metrics.get("reward_change")


def _convert(row: DuelRow, voter: str, *, has_screen: bool) -> Duel:
    # A harm flag is of the pair: it is held against the candidate that was not preferred, or against both.
    by_canary, by_stable = row.screened or (False, False)
    return Duel(
        user=voter,
        asked_at=row.asked_at,
        chosen_at=row.chosen_at,
        outcome=row.outcome,
        both_bad=row.both_bad,
        harmful_canary=by_canary or (row.harmful and row.outcome <= 0),
        harmful_stable=by_stable or (row.harmful and row.outcome >= 0),
        canary_first=row.canary_first,
        failed=row.failed,
        skipped=row.skipped,
        tags=row.tags,
        differences=row.differences,
        unscreened=has_screen and row.screened is None and not row.harmful,
    )
