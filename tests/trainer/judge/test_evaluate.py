"""The offline gate's rules, and the test for something to learn."""

import json
import math
import random
from pathlib import Path

import pytest

from tests.trainer.stores import open_empty
from tests.trainer.tiny import ask, build_tiny_stack
from trainer.judge.evaluate import (
    EvaluateSettings,
    FrozenRow,
    FrozenSets,
    find_failure,
    interval_of_mean,
    judge_policy,
    keep_usable,
    load_frozen_sets,
    log_evidence,
    something_to_learn,
)
from trainer.learn.reward import RewardModel
from trainer.main import load_frozen
from trainer.settings import TrainerSettings

PASSING = {
    "policy_facts": 0.9, "stable_facts": 0.9, "policy_references": 0.8, "stable_references": 0.8,
    "policy_perplexity": 1.2, "stable_perplexity": 1.2, "policy_unfinished": 0.0, "stable_unfinished": 0.0,
    "policy_tokens": 9.0, "stable_tokens": 10.0, "kl_base": 1.0, "kl_stable": 1.0, "reward_gain": 0.5,
    "reward_gain_low": 0.3, "reward_gain_high": 0.7,
}  # fmt: skip


def test_evidence_is_the_mixture_e_value() -> None:
    assert math.exp(log_evidence(2, 2)) == pytest.approx(4 / 3)  # 2^2 B(3, 1)
    assert math.exp(log_evidence(1, 2)) == pytest.approx(2 / 3)  # 2^2 B(2, 2)


def test_nothing_to_learn_from_no_choice_or_from_noise() -> None:
    assert something_to_learn(0, 0) == (False, "nothing to learn: no decisive choice to judge by yet")
    assert not something_to_learn(55, 100)[0]
    assert not something_to_learn(10, 100)[0]  # far from chance, but on the wrong side


def test_clear_choices_are_something_to_learn() -> None:
    assert something_to_learn(75, 100)[0]
    assert something_to_learn(20, 40, foreseen=(210, 300))[0]


def test_coins_looked_at_after_every_toss_seldom_look_learnable() -> None:
    rng = random.Random(5)
    fooled = 0
    for _ in range(400):
        heads = 0
        for toss in range(1, 301):
            heads += rng.random() < 0.5
            if something_to_learn(heads, toss)[0]:
                fooled += 1
                break
    assert fooled <= 8  # alpha .02 shared by two tests: 4 expected at most


def test_interval_of_mean_is_the_normal_one() -> None:
    assert interval_of_mean([1.0, 2.0, 3.0], 0.95) == pytest.approx((2.0, 0.868414, 3.131586), abs=1e-5)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"policy_facts": 0.8}, "facts fell"),
        ({"policy_references": 0.7}, "right answers fell"),
        ({"policy_perplexity": 2.0}, "perplexity"),
        ({"policy_unfinished": 0.2}, "unfinished"),
        ({"policy_tokens": 50.0}, "tokens"),
        ({"kl_base": 50.0}, "KL"),
        ({"reward_gain_low": -0.1}, "reward gain"),
        ({"kl_base": math.nan}, "not finite"),
    ],
)
def test_each_broken_budget_stops_the_round_with_its_reason(changed: dict[str, float], reason: str) -> None:
    assert reason in find_failure({**PASSING, **changed}, EvaluateSettings())


def test_a_policy_within_every_budget_passes() -> None:
    assert find_failure(PASSING, EvaluateSettings()) == ""


def test_the_same_policy_gains_nothing_and_is_stopped() -> None:
    stack = build_tiny_stack()
    frozen = FrozenSets(rows=(FrozenRow(ask(), "Paris", ("It is Paris.",)),))
    verdict = judge_policy(stack, RewardModel(stack), frozen, EvaluateSettings(max_tokens=8))
    assert not verdict.ok
    assert verdict.metrics["kl_base"] == pytest.approx(0, abs=1e-5)
    assert verdict.metrics["policy_references"] == verdict.metrics["stable_references"]


def test_without_frozen_sets_the_verdict_names_what_was_not_available(tmp_path: Path) -> None:
    stack = build_tiny_stack()
    frozen = load_frozen_sets(tmp_path / "absent.jsonl", prompts=[ask()])
    verdict = judge_policy(stack, RewardModel(stack), frozen, EvaluateSettings(max_tokens=8))
    assert "not available" in verdict.reason
    assert "policy_facts" not in verdict.metrics


def test_frozen_sets_are_read_from_json_lines(tmp_path: Path) -> None:
    row = {"messages": ask(), "fact": "Paris", "references": ["It is Paris."]}
    (tmp_path / "frozen.jsonl").write_text(json.dumps(row) + "\n")
    assert load_frozen_sets(tmp_path / "frozen.jsonl").rows == (FrozenRow(ask(), "Paris", ("It is Paris.",)),)


def test_nothing_to_judge_by_stops_the_round_and_says_where_a_set_goes(tmp_path: Path) -> None:
    stack = build_tiny_stack()
    frozen = load_frozen_sets(tmp_path / "frozen.jsonl")
    verdict = judge_policy(stack, RewardModel(stack), frozen, EvaluateSettings(max_tokens=8))
    assert not verdict.ok
    assert verdict.reason.startswith("cannot be judged: ")
    assert str(tmp_path / "frozen.jsonl") in verdict.reason and '"references"' in verdict.reason


def test_lines_and_prompts_of_no_use_are_left_out_of_the_gate(tmp_path: Path) -> None:
    good = {"messages": ask(), "fact": "Paris", "references": ["It is Paris."]}
    bad: list[object] = [
        5, {}, {**good, "messages": []}, {**good, "fact": 5}, {**good, "references": []}, {**good, "references": [None]},
        {**good, "messages": ask("x " * 500)}, {**good, "references": ["y " * 500]},
    ]  # fmt: skip
    lines = [json.dumps(row).encode() for row in [*bad, good]] + [b"{", b"\xff", b""]
    (tmp_path / "frozen.jsonl").write_bytes(b"\n".join(lines))
    image = [{"role": "user", "content": [{"type": "image_url"}]}]
    stack = build_tiny_stack()
    read = load_frozen_sets(tmp_path / "frozen.jsonl", prompts=[image, ask(), ask("x " * 500), []])
    kept = keep_usable(stack, read, EvaluateSettings(max_tokens=8))
    assert [row.references for row in kept.rows] == [("It is Paris.",)]
    assert kept.prompts == (ask(),)
    assert "policy_facts" in judge_policy(stack, RewardModel(stack), read, EvaluateSettings(max_tokens=8)).metrics


def test_an_operators_set_wins_over_the_one_beside_the_base(tmp_path: Path) -> None:
    settings = TrainerSettings(state_dir=tmp_path / "state", base_model=str(tmp_path / "base"))
    with open_empty(settings.trainer_database) as database:
        assert load_frozen(settings, database).path == str(settings.frozen_set)  # where one may be added
        for number, directory in enumerate((tmp_path / "base", tmp_path / "state")):
            directory.mkdir(exist_ok=True)
            row = {"messages": ask(), "fact": f"fact {number}", "references": ["It is Paris."]}
            (directory / "frozen.jsonl").write_text(json.dumps(row))
            assert [row.fact for row in load_frozen(settings, database).rows] == [f"fact {number}"]
