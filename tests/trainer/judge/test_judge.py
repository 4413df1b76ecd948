"""A checkpoint is judged whole: asked, sampled, measured, decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.trainer.tiny import build_tiny_backbone, make_prompt
from trainer.judge.frozen import FrozenSets, digest_prompt, read_row
from trainer.judge.judge import judge_checkpoint, keep_readable, keep_usable, measure_rung
from trainer.learn.sampling.sampler import LocalSampler, Samples, SamplingParameters, SamplingRequest
from trainer.model.backbone import Backbone
from trainer.sections.judging import GateSection
from trainer.text.pairs import Prompt
from trainer.text.transcript import EncodedAnswer

HOW = SamplingParameters(0.7, 1.0, 8)
SETTINGS = GateSection()


@dataclass(frozen=True)
class FakeScores:
    draws: torch.Tensor


class Brevity:
    """A reward model that likes short answers, and says the same in every draw."""

    def score(self, answers: Sequence[EncodedAnswer], texts: Sequence[str]) -> FakeScores:
        assert len(answers) == len(texts)
        return FakeScores(torch.tensor([[-float(len(each.answer))] * 3 for each in answers]))


@pytest.fixture
def backbone() -> Backbone:
    return build_tiny_backbone()


def facts(number: int = 3) -> FrozenSets:
    lines = [
        {"messages": make_prompt(f"capital {i}?").messages, "fact": "Paris", "references": ["It is Paris.", "Go away."]}
        for i in range(number)
    ]
    return FrozenSets(tuple(row for line in lines for row in read_row(line)), path="frozen.jsonl")


def judge(backbone: Backbone, frozen: FrozenSets, heldout: Sequence[Prompt] = (), **changes: Any) -> Any:
    return judge_checkpoint(
        backbone, LocalSampler(backbone), Brevity(), None, frozen, SETTINGS,
        **{"parameters": HOW, "heldout": heldout, **changes},
    )  # fmt: skip


def test_the_same_policy_gains_nothing_and_is_stopped(backbone: Backbone) -> None:
    verdict = judge(backbone, facts())
    assert not verdict.ok
    assert verdict.reason.startswith("reward gain +0.00 is not clearly above 0")
    assert verdict.figures["kl_base"] == pytest.approx(0, abs=1e-5)
    assert verdict.figures["policy_references"] == verdict.figures["stable_references"] > 0
    assert verdict.figures["policy_facts"] == verdict.figures["stable_facts"]
    assert verdict.examples[0].question == "capital 0?"


def test_without_frozen_sets_held_out_prompts_serve_and_the_verdict_names_what_was_not_available(
    backbone: Backbone,
) -> None:
    verdict = judge(backbone, FrozenSets(), [make_prompt(f"prompt {i}?") for i in range(3)])
    assert "; facts not available" in verdict.reason and "the auditor not available" in verdict.reason
    assert "policy_facts" not in verdict.figures and verdict.figures["num_prompts"] == 3


def test_nothing_to_judge_by_closes_the_gate(backbone: Backbone) -> None:
    verdict = judge(backbone, FrozenSets(path="state/frozen.jsonl"))
    assert not verdict.ok and verdict.reason.startswith("cannot be judged: ")
    assert "state/frozen.jsonl" in verdict.reason


def test_an_adapter_with_values_that_are_not_finite_is_stopped(backbone: Backbone) -> None:
    with torch.no_grad():
        next(iter(backbone.adapters.parameters_of("policy").values())).fill_(float("nan"))
    assert "not finite" in judge(backbone, facts()).reason


def test_the_adapters_are_left_as_they_are(backbone: Backbone) -> None:
    before = {name: backbone.adapters.state(name) for name in ("policy", "stable", "reward")}
    judge(backbone, facts(), [make_prompt()])
    for name, state in before.items():
        assert all(torch.equal(tensor, backbone.adapters.state(name)[key]) for key, tensor in state.items())


def test_answers_come_from_the_nucleus_and_the_distance_from_the_whole_distribution(backbone: Backbone) -> None:
    class Recording(LocalSampler):
        def sample(self, request: SamplingRequest) -> Samples:
            asked.append((request.adapter, request.n, request.parameters.top_p))
            return super().sample(request)

    for top_p, expected in ((1.0, []), (0.5, [("policy", 1, 1.0)])):
        asked: list[tuple[str | None, int, float]] = []
        judge_checkpoint(
            backbone, Recording(backbone), Brevity(), None, facts(), SETTINGS,
            parameters=SamplingParameters(0.7, top_p, 8),
        )  # fmt: skip
        assert asked[0] == ("policy", SETTINGS.samples_per_prompt, top_p)
        assert asked[1:] == [("stable", SETTINGS.samples_per_prompt, top_p), *expected]


def test_the_number_of_samples_keeps_within_its_budget(backbone: Backbone) -> None:
    steps: list[str] = []
    settings = GateSection(max_samples=7, max_prompts=2)
    judge_checkpoint(
        backbone, LocalSampler(backbone), Brevity(), None, facts(1), settings, parameters=HOW,
        heldout=[make_prompt(f"prompt {i}?") for i in range(9)], progress=lambda share, step: steps.append(step),
    )  # fmt: skip
    assert steps[0] == "sampling 6 answers of policy"  # two held-out prompts and a fact, twice each


def test_rows_and_prompts_of_no_use_are_left_out(backbone: Backbone) -> None:
    long = "capital " * 90
    lines = [
        {"messages": make_prompt(long).messages, "fact": "Paris"},
        {"messages": make_prompt().messages, "fact": "Paris", "references": [long]},
        {"messages": make_prompt().messages, "kind": "task", "checker": "unknown"},
        {"messages": make_prompt().messages, "kind": "task", "checker": "known"},
    ]
    sets = FrozenSets(tuple(row for line in lines for row in read_row(line)))
    assert [row.checker for row in keep_usable(backbone, sets, 8, {"known": bool}).rows] == ["known"]
    image: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image_url"}]}]
    prompts = [Prompt(messages=image), make_prompt(), make_prompt(), make_prompt(long), Prompt(messages=[])]
    assert keep_readable(backbone, prompts, HOW) == [make_prompt()]


def test_frozen_prompts_are_known_so_that_no_round_trains_on_them() -> None:
    assert digest_prompt(make_prompt("CAPITAL 1").messages) in facts().digests


def test_a_checkpoint_like_the_first_stands_level_on_the_ladder(backbone: Backbone) -> None:
    asked = {"parameters": HOW, "checkpoint": "c-1", "first": "c-0", "kl": 1.5}
    scorers = {"reward": Brevity(), "auditor": Brevity()}
    rung = measure_rung(
        backbone, LocalSampler(backbone), scorers, facts(), SETTINGS, heldout=[make_prompt()], **asked
    )  # fmt: skip
    assert rung is not None
    assert (rung.judge, rung.kl, rung.gains) == ("auditor", 1.5, {"reward": 0.0, "auditor": 0.0})
    assert (rung.win_rate.value, rung.win_rate.n, rung.frozen) == (
        0.5,
        4,
        {"facts": 0.0},
    )  # the same seed says the same
    nothing = FrozenSets()
    assert measure_rung(backbone, LocalSampler(backbone), scorers, nothing, SETTINGS, heldout=[], **asked) is None
