"""The table of phases and events: whole, reachable, drawn, and the only way to move a row."""

from dataclasses import replace
from pathlib import Path
from runpy import run_path

import pytest

from gateway.errors import RefusedAction
from gateway.rollout.desired_state import convert_rules
from gateway.rollout.pure import operator_moves
from gateway.rollout.pure.findings import Inputs, weigh
from gateway.rollout.pure.transitions import (
    CONTROLLER_EVENTS,
    OPERATOR_EVENTS,
    RESUME_TO,
    TRANSITIONS,
    Event,
    Reason,
    find_next_phase,
    fire,
)
from gateway.rollout.pure.verdict import REASON_WORDS, say_reason
from gateway.sections.rollout import RolloutSection
from gateway.tables.rows import RolloutRow

DOCS = Path(__file__).parents[4] / "docs"
SECTION = RolloutSection()
RULES = convert_rules(SECTION)
ROW = RolloutRow(
    id="r", policy="p", checkpoint="c", stable="s", aa=False, phase="Progressing", analysis="Running", reason="Running", step=0,
    step_started_at=0.0, weight=0.01, duel_share=0.0, salt="00", generation=1, created_at=0.0, started_at=0.0,
    phase_started_at=0.0, finished_at=None, resume_phase="", waived="", decision_digest="d", settings="", pair="r", num_tries=1,
)  # fmt: skip


def test_every_event_is_somebodys_and_happens_somewhere() -> None:
    assert set(Event) == CONTROLLER_EVENTS | OPERATOR_EVENTS
    assert {event for events in TRANSITIONS.values() for event in events} == set(Event)


def test_every_phase_is_reached_from_pending_and_can_be_left() -> None:
    reached, fresh = {"Pending"}, {"Pending"}
    while fresh:
        fresh = {after for phase in fresh for after in TRANSITIONS[phase].values()} - reached - {RESUME_TO}
        reached |= fresh
    assert reached == set(TRANSITIONS) and all(TRANSITIONS.values())


def test_every_active_phase_can_be_ended_by_one_action_of_an_operator() -> None:
    for phase in set(TRANSITIONS) - {"Aborting", "Degraded"}:
        assert {Event.ABORT, Event.ROLL_BACK} & set(TRANSITIONS[phase]), phase


@pytest.mark.parametrize(
    ("phase", "actions"),
    [
        ("Pending", ["abort"]),
        ("Shadowing", ["skip", "abort"]),
        ("Progressing", ["pause", "skip", "promote", "abort"]),
        ("Paused", ["resume", "promote", "abort"]),
        ("WaitingPromotion", ["approve", "pause", "promote", "abort"]),
        ("Promoting", ["abort"]),
        ("Baking", ["abort", "rollback"]),
        ("Healthy", ["rollback"]),
        ("RollingBack", ["abort"]),
        ("Aborting", []),
        ("Degraded", ["retry"]),
    ],
)
def test_operators_are_offered_what_the_table_allows(phase: str, actions: list[str]) -> None:
    assert operator_moves.list_actions(replace(ROW, phase=phase), 2) == actions


def test_the_last_step_is_not_skipped() -> None:
    assert operator_moves.list_actions(replace(ROW, step=1), 2) == ["pause", "promote", "abort"]


def test_every_reason_has_words_of_its_own() -> None:
    assert set(REASON_WORDS) == set(Reason) and len(set(REASON_WORDS.values())) == len(REASON_WORDS)
    assert (say_reason("NoData"), say_reason("")) == ("nobody asked or chose anything", "")


def test_nothing_promotes_for_lack_of_evidence() -> None:
    ways = {event for events in TRANSITIONS.values() for event, after in events.items() if after == "Promoting"}
    assert ways == {Event.APPROVE, Event.AUTO_APPROVED, Event.PROMOTE}
    assert {event for event, after in TRANSITIONS["Progressing"].items() if after == "WaitingPromotion"} == {
        Event.PROVEN,
        Event.ASKED_EARLY,
    }


@pytest.mark.parametrize("phase", list(TRANSITIONS))
@pytest.mark.parametrize("event", list(Event))
def test_what_the_table_does_not_list_is_refused_with_the_phase(phase: str, event: Event) -> None:
    row = replace(ROW, phase=phase, resume_phase="WaitingPromotion")
    if event in TRANSITIONS[phase]:
        after = TRANSITIONS[phase][event]
        assert find_next_phase(row, event) == ("WaitingPromotion" if after == RESUME_TO else after)
    else:
        with pytest.raises(RefusedAction, match=f"The rollout is {phase}"):
            fire(row, event, Reason.OPERATOR, 1.0)


def test_a_metric_error_is_the_analysiss_error_until_it_is_over() -> None:
    held = fire(ROW, Event.UNWEIGHABLE, Reason.METRIC_ERROR, 1.0, resume_phase=ROW.phase).row
    assert (held.phase, held.analysis) == ("Paused", "Error")
    assert operator_moves.resume(held, "key:1", 2.0).row.analysis == "Running"


def test_resuming_accepts_what_it_was_paused_for_and_nothing_else() -> None:
    held = fire(ROW, Event.ALARMED, Reason.REFUSALS, 1.0, resume_phase=ROW.phase).row
    assert operator_moves.resume(held, "key:1", 2.0).row.waived == "refusals"
    skewed = fire(
        replace(ROW, waived="refusals"), Event.SKEWED, Reason.SAMPLE_RATIO_MISMATCH, 1.0, resume_phase=ROW.phase
    ).row
    assert operator_moves.resume(skewed, "key:1", 2.0).row.waived == "refusals split"
    assert operator_moves.resume(operator_moves.pause(ROW, "key:1", 1.0).row, "key:1", 2.0).row.waived == ""


def test_a_step_is_skipped_until_the_last() -> None:
    row = ROW
    for step, weight in ((1, 0.05), (2, 0.25), (3, 0.5)):
        moved = operator_moves.skip_step(row, RULES, "key:1", 5.0)
        row = moved.row
        assert (row.step, row.weight, row.step_started_at, row.phase) == (step, weight, 5.0, "Progressing")
        assert (moved.reason, moved.actor) == (Reason.SKIPPED, "key:1")
    with pytest.raises(RefusedAction, match="last step"):
        operator_moves.skip_step(row, RULES, "key:1", 6.0)


def test_an_approval_of_another_decision_is_refused() -> None:
    row, findings = replace(ROW, phase="WaitingPromotion"), weigh(RULES, Inputs(0.0, [], []))
    for generation, digest in ((2, "d"), (1, "e")):
        with pytest.raises(RefusedAction, match="moved on"):
            operator_moves.approve(row, findings, RULES, generation, digest, "key:1", 1.0)
    with pytest.raises(RefusedAction, match="no longer pass"):
        operator_moves.approve(row, findings, RULES, 1, "d", "key:1", 1.0)


def test_the_page_shows_the_table_of_now() -> None:
    drawing = run_path(str(DOCS / "render_rollouts.py"))
    page = (DOCS / "rollouts.md").read_text()
    assert drawing["render_page"](page) == page
