"""The chaos run's checker finds what is planted: a lost choice, a doubled one, one that was trained on twice."""

from dataclasses import replace

import pytest

from bench.chaos.checker import Checkpoint, Consumed, Evidence, Stored, check
from trainer.run.publish.checkpoints import digest_ids

PREFERRED = {"a": "first", "b": "second", "c": "tie", "d": "skip", "e": "first"}


def consumed(number: int, comparison: str, **changes: object) -> Consumed:
    row = Consumed(
        id=number,
        event_id=f"event-{comparison}",
        comparison=comparison,
        preferred=PREFERRED[comparison],
        split="heldout" if comparison == "e" else "train",
        used_as_new=0 if comparison in "de" else 1,
    )
    return replace(row, **changes)


def checkpoint(number: int, events: str, after_id: int, last_id: int, parent: str | None = None) -> Checkpoint:
    digest = digest_ids(f"event-{event}" for event in events)
    return Checkpoint(f"c-{number}", parent, after_id, last_id, len(events), digest)


ROWS = [consumed(number, comparison) for number, comparison in enumerate(PREFERRED, 1)]
GOOD = Evidence(
    sent={**PREFERRED, "f": "first"},  # f was never acknowledged, and is not there
    acknowledged=PREFERRED,
    stored=[Stored(*choice) for choice in PREFERRED.items()],
    consumed=ROWS,
    updates=[1, 2],
    reward_version=2,
    checkpoints=[checkpoint(0, "", 0, 0), checkpoint(1, "a", 0, 1, "c-0"), checkpoint(2, "bc", 1, 5, "c-1")],
)


def test_a_run_that_kept_every_promise_is_found_so():
    findings = check(GOOD)
    assert findings.broken == []
    assert (findings.acknowledged, findings.lost, findings.duplicated, findings.trained_twice) == (5, 0, 0, 0)
    assert (findings.trained, findings.unaccounted) == (3, 0)
    assert findings.set_aside == {"heldout": 1, "skip": 1}


def test_what_was_sent_and_never_acknowledged_may_be_stored():
    stored = [*GOOD.stored, Stored("f", "first")]
    row = replace(consumed(6, "a"), comparison="f", event_id="event-f")
    assert check(replace(GOOD, stored=stored, consumed=[*ROWS, row])).broken == []


def test_a_choice_that_the_gateway_lost_is_found():
    findings = check(replace(GOOD, stored=GOOD.stored[1:]))
    assert (findings.lost, findings.broken) == (1, ["lost: a"])


def test_a_choice_that_never_reached_the_trainer_is_lost_and_unaccounted():
    findings = check(replace(GOOD, consumed=[row for row in ROWS if row.comparison != "d"]))
    assert (findings.lost, findings.unaccounted) == (1, 1)
    assert len(findings.broken) == 2


def test_a_choice_that_was_stored_otherwise_is_lost_and_invented():
    findings = check(replace(GOOD, stored=[Stored("a", "second"), *GOOD.stored[1:]]))
    assert (findings.lost, findings.duplicated) == (1, 1)


def test_a_choice_that_became_two_preferences_is_found():
    again = consumed(6, "c", event_id="event-again")
    findings = check(replace(GOOD, consumed=[*ROWS, again]))
    assert (findings.duplicated, findings.broken) == (1, ["duplicated: c"])


def test_a_choice_that_the_gateway_stored_twice_is_found():
    assert check(replace(GOOD, stored=[*GOOD.stored, Stored("a", "first")])).duplicated == 1


def test_a_choice_that_nobody_sent_is_found():
    assert check(replace(GOOD, stored=[*GOOD.stored, Stored("nobody", "first")])).duplicated == 1


def test_a_preference_that_was_new_to_two_updates_is_found():
    findings = check(replace(GOOD, consumed=[consumed(1, "a", used_as_new=2), *ROWS[1:]]))
    assert (findings.trained_twice, findings.broken) == (1, ["trained twice: event-a"])


@pytest.mark.parametrize("updates", [[2], [1], [1, 2, 3]])
def test_an_update_that_was_saved_and_not_marked_or_marked_and_not_saved_is_found(updates):
    assert check(replace(GOOD, updates=updates)).trained_twice == 1


def test_a_preference_that_is_new_twice_in_one_lineage_is_found():
    overlapping = [*GOOD.checkpoints[:2], checkpoint(2, "abc", 0, 5, "c-1")]
    assert check(replace(GOOD, checkpoints=overlapping)).broken == ["trained twice: event-a"]


def test_two_checkpoints_of_one_parent_may_learn_from_the_same():
    siblings = [*GOOD.checkpoints[:2], checkpoint(2, "abc", 0, 5, "c-0")]
    assert check(replace(GOOD, checkpoints=siblings)).broken == []


def test_a_round_that_takes_fewer_than_there_are_takes_the_newest():
    newest, oldest = checkpoint(1, "c", 0, 5, "c-0"), checkpoint(1, "a", 0, 5, "c-0")
    assert check(replace(GOOD, checkpoints=[GOOD.checkpoints[0], newest])).broken == []
    assert check(replace(GOOD, checkpoints=[GOOD.checkpoints[0], oldest])).trained_twice == 1


def test_a_checkpoint_that_learnt_from_other_events_than_it_says_is_found():
    wrong = [*GOOD.checkpoints[:2], replace(checkpoint(2, "bc", 1, 5, "c-1"), ids_digest=digest_ids(["event-e"]))]
    assert check(replace(GOOD, checkpoints=wrong)).trained_twice == 1


def test_a_choice_that_still_waits_for_an_update_is_unaccounted():
    findings = check(replace(GOOD, consumed=[consumed(1, "a", used_as_new=0), *ROWS[1:]]))
    assert (findings.trained, findings.unaccounted) == (2, 1)


def test_a_dead_letter_is_set_aside_with_its_reason():
    findings = check(replace(GOOD, consumed=ROWS[:3] + ROWS[4:], dead_letters=["d"]))
    assert (findings.broken, findings.set_aside) == ([], {"dead_letter": 1, "heldout": 1})


def test_an_answer_that_no_client_may_get_breaks_the_run():
    assert check(replace(GOOD, violations=["409 for an own choice"])).broken == ["answer: 409 for an own choice"]
