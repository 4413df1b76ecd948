"""The prequential record: a window, its evidence, its calibration and its slices, by hand."""

import json
import math
import random

import pytest

from trainer.learn.reward.prequential import Foreseen, Prequential, calibrate, something_to_learn


def foreseen(number: int, preferred: str = "first", logit: float = 1.0, **fields) -> Foreseen:
    return Foreseen(event_id=str(number), preferred=preferred, logit=logit, **fields)


def make_record(right: int, wrong: int, window: int = 400) -> Prequential:
    rows = [foreseen(i) for i in range(right)] + [foreseen(i, "second") for i in range(right, right + wrong)]
    return Prequential(window, rows)


def test_only_the_last_choices_count() -> None:
    record = Prequential(window=30)
    record.add([foreseen(i, "second") for i in range(50)])
    assert (record.count, record.accuracy) == ((0, 30), 0)
    record.add([foreseen(i) for i in range(30)])
    assert (record.count, record.num_seen) == ((30, 30), 80)


def test_ties_are_kept_and_are_neither_right_nor_wrong() -> None:
    record = Prequential(
        window=30, rows=[foreseen(0), foreseen(1, "tie"), foreseen(2, "both_bad"), foreseen(3, "second")]
    )
    assert (record.count, len(record.rows)) == ((1, 2), 4)
    assert Prequential().accuracy == 0.5


def test_a_model_that_says_nothing_is_not_right() -> None:
    assert Prequential(rows=[foreseen(0, logit=0.0), foreseen(1, "second", logit=0.0)]).count == (0, 2)


def test_slices_are_apps_and_tags() -> None:
    rows = [
        foreseen(0, app="chat", tags={"task": "explain"}),
        foreseen(1, "second", app="chat", tags={"task": "list"}),
        foreseen(2, app="mail"),
    ]
    expected = {"app=chat": (1, 2), "app=mail": (1, 1), "task=explain": (1, 1), "task=list": (0, 1)}
    assert Prequential(rows=rows).by_slice() == expected


def test_users_who_are_known_have_counts_of_their_own() -> None:
    rows = [foreseen(0, user="a"), foreseen(1, "second", user="a"), foreseen(2, user="b"), foreseen(3)]
    assert Prequential(rows=rows).by_user() == {"a": (1, 2), "b": (1, 1)}


def test_parts_are_judged_alone() -> None:
    rows = [foreseen(0, parts={"style": 1.0, "head": -1.0}), foreseen(1, "second", parts={"style": 1.0, "head": -2.0})]
    record = Prequential(rows=rows)
    assert (record.count_part("style"), record.count_part("head"), record.count_part("none")) == (
        (1, 2),
        (1, 2),
        (0, 2),
    )


def test_choices_between_picked_answers_judge_nothing_and_take_no_others_place() -> None:
    record = Prequential(window=2, rows=[foreseen(0), foreseen(1, "second")])
    record.add([foreseen(i, app="a", user="u", may_judge=False) for i in (2, 3, 4)])
    assert (record.count, record.by_slice(), record.by_user()) == ((1, 2), {}, {})
    assert [row.event_id for row in record.everything] == ["0", "1", "3", "4"]
    assert record.num_seen == 5
    again = Prequential.from_state(json.loads(json.dumps(record.state())))
    assert (again.everything, again.num_seen) == (record.everything, 5)
    record.drop({"1", "4"})
    assert [row.event_id for row in record.everything] == ["0", "3"]


def test_the_record_is_kept_as_json() -> None:
    record = Prequential(window=25, rows=[foreseen(i, parts={"style": 0.1}, tags={"a": "b"}) for i in range(40)])
    again = Prequential.from_state(json.loads(json.dumps(record.state())))
    assert (list(again.rows), again.rows.maxlen, again.num_seen) == (list(record.rows), 25, 25)


def test_there_is_something_to_learn_where_the_window_speaks_against_chance() -> None:
    may_learn, sentence = something_to_learn(make_record(40, 20), 0, 0)
    assert may_learn is (60 * math.log(2) + math.lgamma(41) + math.lgamma(21) - math.lgamma(62) >= math.log(100))
    assert not may_learn and "40 of 60 new choices foreseen (67%)" in sentence
    assert something_to_learn(make_record(45, 15), 0, 0) == (
        True,
        "45 of 60 new choices foreseen (75%), better than chance",
    )


def test_held_out_choices_speak_as_well() -> None:
    may_learn, sentence = something_to_learn(make_record(10, 10), 75, 100)
    assert (may_learn, sentence) == (True, "75 of 100 held-out choices foreseen (75%), better than chance")


def test_being_wrong_too_often_is_nothing_to_learn() -> None:
    assert not something_to_learn(make_record(5, 95), 0, 0)[0]
    assert something_to_learn(Prequential(), 0, 0) == (False, "nothing to learn: no decisive choice to judge by yet")


def test_where_no_evidence_is_waited_for_it_is_said_all_the_same() -> None:
    assert something_to_learn(make_record(9, 11), 0, 0, 0.0) == (True, "9 of 20 new choices foreseen (45%)")
    assert something_to_learn(Prequential(), 0, 0, 0.0) == (True, "no choice was foreseen yet")


def test_what_was_foreseen_long_ago_is_no_evidence_today() -> None:
    record = make_record(400, 0)
    rng = random.Random(0)
    record.add([foreseen(i, rng.choice(["first", "second"])) for i in range(400)])
    assert not something_to_learn(record, 0, 0)[0]


def test_noise_rarely_looks_like_something() -> None:
    rng = random.Random(1)
    alarms = 0
    for _ in range(200):
        record = Prequential(rows=[foreseen(i, rng.choice(["first", "second"])) for i in range(400)])
        alarms += something_to_learn(record, 0, 0)[0]
    assert alarms <= 2


def test_chances_that_come_true_are_calibrated_and_exaggerated_ones_are_scaled_down() -> None:
    rng = random.Random(2)
    logits = [rng.uniform(-3, 3) for _ in range(4000)]
    rows = [(logit, rng.random() < 1 / (1 + math.exp(-logit))) for logit in logits]
    honest = calibrate(rows)
    assert honest.temperature == pytest.approx(1, abs=0.1)
    assert honest.ece < 0.02
    loud = calibrate([(3 * logit, came) for logit, came in rows])
    assert loud.temperature == pytest.approx(3, abs=0.3)
    assert loud.ece < 0.02


def test_the_calibration_error_is_the_mean_gap_between_said_and_seen() -> None:
    # ten rows said at .731 (logit 1), of which 5 came: best temperature is the largest, said .5156
    measured = calibrate([(1.0, i < 5) for i in range(10)])
    assert measured.temperature == 16
    assert measured.ece == pytest.approx(1 / (1 + math.exp(-1 / 16)) - 0.5)
    assert calibrate([]).ece == 0
