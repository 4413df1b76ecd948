"""When a round is due, and why not: pure, with numbers by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from trainer.run.publish.registry import ServingState
from trainer.run.rounds import NewPreferences
from trainer.run.rows.schedule import Due, Situation, estimate_seconds_left, explain_round, explain_wait, is_restart_due
from trainer.sections.training import DpoSection
from trainer.settings import TrainerSection

SECTION = TrainerSection(round_every_preferences=40, round_every_minutes=60, round_min_preferences=10)


def ask(total: int, decisive: int, **more: object) -> Due:
    return explain_round(Situation(new=NewPreferences(total, decisive, total), **more), SECTION)  # type: ignore[arg-type]


def test_a_round_is_due_when_enough_decisive_preferences_are_new() -> None:
    assert ask(39, 39) == Due(False, "39 of 40 new decisive preferences", 39 / 40)
    assert ask(41, 40) == Due(True, "40 new decisive preferences", 1.0)


def test_people_who_only_tie_make_a_round_due_at_twice_the_number() -> None:
    assert ask(79, 0) == Due(False, "0 of 40 new decisive preferences", 79 / 80)
    assert ask(80, 0) == Due(True, "80 new preferences, 0 of them decisive", 1.0)


def test_time_makes_a_round_due_with_fewer_preferences_but_not_with_too_few() -> None:
    assert not ask(10, 10, since_s=3599).is_due
    assert ask(10, 10, since_s=3600).reason == "60 minutes and 10 new decisive preferences since the last round"
    assert not ask(9, 9, since_s=36000).is_due


def test_what_the_last_round_had_no_room_for_counts_as_new() -> None:
    assert ask(5, 5, num_left=35).reason == "5 new decisive preferences and 35 that the last round left"
    assert not ask(5, 5, num_left=34).is_due


def test_an_operator_needs_no_number() -> None:
    assert ask(0, 0, is_requested=True) == Due(True, "an operator asked for a round; 0 new decisive preferences", 1.0)


def test_an_sft_round_waits_for_demonstrations_and_not_for_preferences() -> None:
    section = TrainerSection(round="sft", sft_every_demonstrations=10)
    situation = Situation(new=NewPreferences(10_000, 10_000, 10_000), num_demonstrations=9)
    assert explain_round(situation, section) == Due(False, "9 of 10 new demonstrations", 0.9, "sft")
    assert explain_round(Situation(new=NewPreferences(0, 0, 0), num_demonstrations=10), section).is_due


def test_a_kind_of_round_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError, match="'dpo', 'ppo' or 'sft'"):
        TrainerSection(round="kto")  # type: ignore[arg-type]


def test_a_round_waits_for_trials_and_for_a_stable_checkpoint_that_is_here() -> None:
    idle = ServingState("c-1", "d", None, None)
    busy = ServingState("c-1", "d", "r-1", "Progressing")
    assert explain_wait(idle, None, True, may_overlap=False) == ""
    assert explain_wait(busy, None, True, may_overlap=False) == "rollout r-1 is Progressing"
    assert explain_wait(busy, "c-2", True, may_overlap=True) == ""
    assert explain_wait(idle, "c-2", True, may_overlap=False) == "c-2 has not been on trial yet"
    assert explain_wait(idle, None, False, may_overlap=False) == "no directory here holds the stable checkpoint c-1"
    nobody = ServingState(None, None, None, None)
    assert explain_wait(nobody, None, False, may_overlap=True) == "the gateway has no stable checkpoint yet"


FOUR, NEVER = DpoSection(restart_every=4, restart_min_rows=500), DpoSection(restart_every=0)


def test_a_restart_is_due_after_so_many_published_rounds_and_never_with_zero() -> None:
    assert [is_restart_due(FOUR, n, 500) for n in (3, 4, 5)] == [False, True, True]
    assert not is_restart_due(NEVER, 100, 10_000)


def test_a_restart_is_due_after_a_round_that_went_on_from_stable_and_was_stopped() -> None:
    assert is_restart_due(FOUR, 0, 500, has_chain_failed=True)
    assert not is_restart_due(NEVER, 0, 10_000, has_chain_failed=True)


def test_few_rows_are_no_ground_for_a_restart() -> None:
    assert not is_restart_due(FOUR, 100, 499)
    assert is_restart_due(FOUR, 0, 499, has_chain_failed=True)  # a chain that is stopped would be stopped again


def test_seconds_left_follow_the_pace_since_the_phase_was_taken_up() -> None:
    assert estimate_seconds_left(0.5, 0.0, 10.0) == pytest.approx(10.0)
    assert estimate_seconds_left(0.75, 0.5, 10.0) == pytest.approx(10.0)  # resumed at a half: a quarter took 10 s
    assert estimate_seconds_left(0.5, 0.5, 10.0) is None


def explain_turns(kinds: list[str], num_rounds: int, **more: object) -> Due:
    section = TrainerSection(round=kinds, round_every_preferences=40, sft_every_demonstrations=5)
    new = NewPreferences(40, 40, 40)
    return explain_round(Situation(new=new, num_rounds=num_rounds, **more), section)  # type: ignore[arg-type]


def test_rounds_take_their_kinds_in_turn() -> None:
    kinds = ["dpo", "ppo", "dpo"]
    assert [explain_turns(kinds, number).kind for number in range(4)] == ["dpo", "ppo", "dpo", "dpo"]
    assert explain_round(Situation(new=NewPreferences(40, 40, 40)), SECTION).kind == "dpo"


def test_a_kind_that_is_not_due_is_passed_over() -> None:
    assert explain_turns(["dpo", "sft"], 1, num_demonstrations=4).kind == "dpo"
    assert explain_turns(["dpo", "sft"], 1, num_demonstrations=5) == Due(True, "5 new demonstrations", 1.0, "sft")
    nothing = explain_turns(["sft", "ppo"], 0)
    assert (nothing.is_due, nothing.kind) == (True, "ppo")


def test_a_round_that_is_asked_for_is_of_a_kind_that_has_rows() -> None:
    asked = explain_turns(["sft", "ppo"], 0, is_requested=True)
    assert (asked.kind, asked.reason) == ("ppo", "an operator asked for a round; 40 new decisive preferences")
    assert explain_turns(["sft", "ppo"], 0, is_requested=True, num_demonstrations=1).kind == "sft"


def test_ppo_in_several_processes_is_refused() -> None:
    with pytest.raises(ValidationError, match="round ppo trains in one process"):
        TrainerSection(round=["dpo", "ppo"], num_processes=2)
    with pytest.raises(ValidationError):
        TrainerSection(round=[])
    assert TrainerSection(round=["dpo", "sft"], num_processes=2).round_kinds == ["dpo", "sft"]
