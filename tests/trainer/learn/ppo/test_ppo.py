"""A PPO round on a tiny model: it raises what is rewarded, keeps near its reference, and goes on after a kill."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.learn.prompts import HOW, ROUND, build_backbone, make_rows, reward_liked, weights_of
from tests.trainer.tiny import encode, make_prompt
from trainer.learn.isolation import NotFinite
from trainer.learn.loop import Snapshots
from trainer.learn.ppo.run import run_ppo
from trainer.learn.sampling.sampler import EngineFailed, LocalSampler, Samples, SamplingRequest
from trainer.learn.training import NothingToTrainOn
from trainer.model.backbone import Backbone
from trainer.model.logprobs import score_answers
from trainer.sections.training import PpoSection
from trainer.text.pairs import PromptRow

SHORT = ROUND.model_copy(
    update={"lr": 1e-2, "value_lr": 1e-2, "iterations": 3, "samples_per_prompt": 4, "epochs": 2, "minibatches": 2}
)


def run(backbone: Backbone, section: PpoSection = ROUND, **options: Any) -> dict[str, float]:
    chosen: dict[str, Any] = {
        "prompts": make_rows(),
        "sampler": LocalSampler(backbone),
        "rewards": reward_liked(),
        "parameters": HOW,
        "reference": None,
        "seed": 1,
        **options,
    }
    return run_ppo(backbone, chosen.pop("prompts"), section, **chosen)


def without_time(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if name != "share_generating"}


@cache
def learn() -> tuple[dict[str, float], list[tuple[float, dict[str, float]]]]:
    """Figures of a whole round, and what it showed."""
    seen: list[tuple[float, dict[str, float]]] = []
    return run(build_backbone(), progress=lambda share, step: seen.append((share, step))), seen


class Killed(BaseException):
    """Stands for kill -9."""


# What it learns


def test_a_round_raises_what_is_rewarded_and_shows_every_part_of_it() -> None:
    figures, seen = learn()
    assert figures["reward_first"] + 0.4 < figures["reward"]  # .63 to 1.77 more with six seeds
    assert figures["reward_liked"] == figures["reward"]
    assert [share for share, _ in seen] == sorted(share for share, _ in seen) and seen[-1][0] == 1
    assert {step["iteration"] for _, step in seen} == set(range(6))
    assert figures["num_steps"] == sum(step["lr"] > 0 for _, step in seen)
    first, last = seen[0][1], seen[-1][1]
    assert first["kl"] == pytest.approx(0, abs=1e-4) and first["approximate_kl"] == pytest.approx(0, abs=1e-6)
    assert first["importance_weight"] == pytest.approx(1, abs=1e-3)
    assert first["explained_variance"] == pytest.approx(0, abs=1e-6) and last["explained_variance"] > 0.05
    names = ("policy_loss", "value_loss", "clip_share", "entropy", "dropped", "share_generating", "grad_norm")
    assert all(name in step for _, step in seen for name in names)


def test_the_price_of_kl_keeps_the_policy_near_its_reference() -> None:
    cheap, dear = learn()[0], run(build_backbone(), ROUND.model_copy(update={"kl_coefficient": 2.0}))
    assert cheap["kl"] > 2 > 0.5 > dear["kl"] > 0  # 2.7 to 5.7, and at most .2, with six seeds
    assert dear["reward"] < cheap["reward"]


def test_an_adaptive_price_rises_while_kl_is_above_its_target() -> None:
    prices: list[float] = []
    section = ROUND.model_copy(update={"adaptive_kl": True, "kl_target": 0.5, "kl_horizon": 64.0})
    run(build_backbone(), section, progress=lambda _, step: prices.append(step["kl_coefficient"]))
    assert prices[0] == 0.05
    assert sorted(set(prices))[:2] == pytest.approx([0.04, 0.048])  # a fifth less after no KL at all, then a fifth more
    assert prices[-1] > 0.08


def test_kl_is_to_the_reference_that_was_named() -> None:
    backbone = build_backbone()
    run(backbone, SHORT)
    backbone.adapters.reset("stable", like="policy")
    first: list[float] = []
    run(backbone, SHORT, reference="stable", progress=lambda _, step: first.append(step["kl"]))
    assert first[0] == pytest.approx(0, abs=1e-4)
    run(backbone, SHORT, references=lambda answers: torch.zeros(sum(len(a.answer) for a in answers)))
    assert torch.equal(weights_of(backbone, "reward"), weights_of(build_backbone(), "reward"))


def test_all_but_policy_and_value_stand_still() -> None:
    backbone = build_backbone()
    backbone.adapters.reset("stable", like="policy")
    before = {name: weights_of(backbone, name) for name in ("stable", "reward", "auditor")}
    answers = [encode(backbone, "It is Paris.")]
    said = score_answers(backbone, answers, None)[0]
    run(backbone, SHORT, reference="stable")
    assert all(torch.equal(weights_of(backbone, name), weights) for name, weights in before.items())
    assert torch.equal(score_answers(backbone, answers, None)[0], said)
    assert not torch.equal(score_answers(backbone, answers, "policy")[0], said)


def test_a_reference_may_follow_the_policy() -> None:
    backbone = build_backbone()
    figures = run(backbone, ROUND.model_copy(update={"reference_ema": 0.5}))
    assert figures["kl"] < learn()[0]["kl"]
    assert not torch.equal(weights_of(backbone, "stable"), weights_of(build_backbone(), "stable"))


def test_an_iteration_ends_before_a_step_that_would_go_too_far() -> None:
    backbone = build_backbone()
    seen: list[dict[str, float]] = []
    section = SHORT.model_copy(update={"max_approximate_kl": 1e-3})
    figures = run(backbone, section, progress=lambda _, step: seen.append(step))
    refused = [step for step in seen if step["lr"] == 0]
    assert refused and all(step["approximate_kl"] > 1e-3 for step in refused)
    assert figures["num_steps"] == len(seen) - len(refused) < 12


def test_learning_rates_follow_from_the_preset_unless_they_are_set() -> None:
    rates: list[float] = []
    flat = {"iterations": 1, "warmup_share": 0.0, "decay": "none", "lr": None}
    for preset, given in (("tiny", {}), ("small", {}), ("gpu", {}), ("tiny", {"lr": 5e-6})):
        section = SHORT.model_copy(update={**flat, **given})
        run(build_backbone(preset=preset), section, progress=lambda _, step: rates.append(step["lr"]))
    assert sorted(set(rates)) == pytest.approx([5e-6, 1e-5, 5e-5, 3e-4])


# Resume


def kill_at(number: int) -> Callable[..., None]:
    calls: list[None] = []

    def kill(*_: Any) -> None:
        calls.append(None)
        if len(calls) == number:
            raise Killed

    return kill


@pytest.mark.parametrize("extra", [{}, {"reference_ema": 0.5, "adaptive_kl": True}])
def test_a_round_killed_at_any_step_ends_in_the_same_bits_and_figures(tmp_path: Path, extra: dict[str, Any]) -> None:
    section = SHORT.model_copy(update={"epochs": 1, **extra})
    backbone, shares = build_backbone(), []
    whole = Snapshots(tmp_path / "whole", 3)
    expected = run(backbone, section, snapshots=whole, progress=lambda share, _: shares.append(share))
    states = [weights_of(backbone, name) for name in ("policy", "value", "stable")]
    assert [path.name for path in whole.directory.iterdir()] == ["snapshot.safetensors"]
    for killed_at in range(1, len(shares) + 1):
        snapshots = Snapshots(tmp_path / str(killed_at), 3)
        with pytest.raises(Killed):
            run(build_backbone(), section, snapshots=snapshots, progress=kill_at(killed_at))
        backbone = build_backbone()
        assert without_time(run(backbone, section, snapshots=snapshots)) == without_time(expected)
        assert all(
            torch.equal(weights_of(backbone, name), state)
            for name, state in zip(("policy", "value", "stable"), states, strict=True)
        )


class DyingSampler(LocalSampler):
    """Dies at its n-th call."""

    def __init__(self, backbone: Backbone, number: int) -> None:
        super().__init__(backbone)
        self._kill = kill_at(number)

    def sample(self, request: SamplingRequest) -> Samples:
        self._kill()
        return super().sample(request)


def test_a_round_killed_while_it_samples_ends_in_the_same_bits(tmp_path: Path) -> None:
    backbone = build_backbone()
    run(backbone, SHORT)
    for number in (1, 2, 3):
        snapshots = Snapshots(tmp_path / str(number), 100)
        again = build_backbone()
        with pytest.raises(Killed):
            run(again, SHORT, snapshots=snapshots, sampler=DyingSampler(again, number))
        again = build_backbone()
        sampler = DyingSampler(again, 5 - number)
        with pytest.raises(Killed):  # and no iteration that is over is sampled twice
            run(again, SHORT, snapshots=snapshots, sampler=sampler, progress=kill_at(4 * (4 - number)))
        again = build_backbone()
        run(again, SHORT, snapshots=snapshots)
        assert torch.equal(weights_of(again), weights_of(backbone))


def test_answers_of_an_iteration_under_way_are_learnt_from_and_not_sampled_again(tmp_path: Path) -> None:
    """As when an engine sampled them, which would say something else now."""
    with pytest.raises(Killed):
        run(build_backbone(), SHORT, snapshots=Snapshots(tmp_path, 1), progress=kill_at(2))
    backbone = build_backbone()
    with pytest.raises(Killed):
        run(backbone, SHORT, snapshots=Snapshots(tmp_path, 1), sampler=DyingSampler(backbone, 1), progress=kill_at(9))


def test_experience_without_its_snapshot_is_not_learnt_from(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(build_backbone(), SHORT, snapshots=Snapshots(tmp_path, 1), progress=kill_at(6))
    (tmp_path / "snapshot.safetensors").write_bytes(b"half a file")
    backbone, expected = build_backbone(), build_backbone()
    run(backbone, SHORT, snapshots=Snapshots(tmp_path, 1))
    run(expected, SHORT)
    assert torch.equal(weights_of(backbone), weights_of(expected))


# Overlap


class FakeEngine:
    """An engine as far as a round can tell. `asked` counts its answers by how they were asked for; fails: begun ones are lost."""

    def __init__(self, backbone: Backbone, fails: bool = False) -> None:
        self._backbone, self._local, self._fails = backbone, LocalSampler(backbone), fails
        self.source = "engine"
        self.asked: list[tuple[str, torch.Tensor]] = []

    def sample(self, request: SamplingRequest) -> Samples:
        self.asked.append(("sample", weights_of(self._backbone)))
        return self._local.sample(request)

    def begin(self, request: SamplingRequest) -> Callable[[], Samples]:
        self.asked.append(("begin", weights_of(self._backbone)))
        sampled = self._local.sample(request)

        def wait() -> Samples:
            if self._fails:
                raise EngineFailed("it is gone")
            return sampled

        return wait


def test_an_engine_samples_the_next_answers_before_the_policy_has_learnt_from_the_last() -> None:
    backbone, seen = build_backbone(), []
    engine = FakeEngine(backbone)
    run(backbone, SHORT, sampler=engine, progress=lambda _, step: seen.append(step))
    assert [name for name, _ in engine.asked] == ["sample", "begin", "begin"]
    states = [state for _, state in engine.asked]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[1], states[2])
    stale = [step for step in seen if step["iteration"] > 0]
    assert all(step["importance_weight"] != pytest.approx(1, abs=1e-4) for step in stale)
    assert all(step["importance_weight"] < 2 for step in stale)


def test_without_overlap_every_answer_is_the_policys_own() -> None:
    backbone, seen = build_backbone(), []
    engine = FakeEngine(backbone)
    section = SHORT.model_copy(update={"overlap": False})
    run(backbone, section, sampler=engine, progress=lambda _, step: seen.append(step["importance_weight"]))
    assert [name for name, _ in engine.asked] == ["sample"] * 3
    assert seen == pytest.approx([1.0] * len(seen), abs=1e-3)


def test_begun_answers_that_are_lost_are_sampled_when_they_are_needed() -> None:
    backbone = build_backbone()
    engine = FakeEngine(backbone, fails=True)
    run(backbone, SHORT, sampler=engine)
    assert [name for name, _ in engine.asked] == ["sample", "begin", "sample", "begin", "sample"]


# What cannot be learnt from


def test_prompts_that_cannot_be_encoded_are_rejected() -> None:
    rows, rejected = [*make_rows(), PromptRow("long", make_prompt("why " * 200))], []
    figures = run(build_backbone(), SHORT, prompts=rows, reject=lambda *row: rejected.append(row[:2]))
    assert rejected == [("long", "ppo")] and figures["num_answers"] == 3 * 4 * 4


def test_a_round_without_a_usable_prompt_has_nothing_to_train_on() -> None:
    with pytest.raises(NothingToTrainOn):
        run(build_backbone(), SHORT, prompts=[PromptRow("long", make_prompt("why " * 200))], reject=lambda *_: None)


class BrokenRow(RuntimeError):
    """What a kernel might raise for one row."""


@pytest.mark.parametrize("learns", [True, False])
def test_a_row_that_breaks_goes_alone(monkeypatch: pytest.MonkeyPatch, learns: bool) -> None:
    """learns: it breaks in a step, else while its answers are measured."""
    backbone = build_backbone()
    bad, make = backbone.transcriber.encode_prompt(make_rows()[1].prompt), backbone.make_batch

    def checked(items: Any) -> Any:
        if torch.is_grad_enabled() == learns and any(prompt == bad for prompt, _ in items):
            raise BrokenRow("no kernel takes this row")
        return make(items)

    monkeypatch.setattr(backbone, "make_batch", checked)
    section = SHORT.model_copy(update={"iterations": 1})
    figures = run(backbone, section, reject=lambda event_id, *_: pytest.fail(f"{event_id} was rejected"))
    assert figures["failed"] == 4 and figures["num_steps"] == 4 and figures["num_answers"] == (16 if learns else 12)


def test_a_broken_model_rejects_nobody_and_says_so() -> None:
    backbone = build_backbone()
    with torch.no_grad():
        next(iter(backbone.adapters.parameters_of("policy").values())).fill_(float("nan"))
    with pytest.raises(NotFinite):
        run(backbone, SHORT, reject=lambda event_id, *_: pytest.fail(f"{event_id} was rejected"))
