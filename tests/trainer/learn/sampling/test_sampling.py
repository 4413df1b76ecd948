"""Sampling: the ids and log-probabilities that answers were drawn by, locally and from an engine."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from tests.trainer.learn.sampling.fake_engine import FakeEngine, run_fake_engine
from tests.trainer.tiny import build_tiny_backbone, make_prompt
from trainer.learn.isolation import NotFinite
from trainer.learn.sampling.engine_fetch import GivenUp
from trainer.learn.sampling.engine_sampler import EngineSampler
from trainer.learn.sampling.sampler import (
    EngineFailed,
    LocalSampler,
    PreferredSampler,
    Sampled,
    SamplingParameters,
    SamplingRequest,
    choose_parameters,
    draw_tokens,
)
from trainer.model.backbone import Backbone
from trainer.model.logprobs import score_answers
from trainer.sections.judging import SamplingSection
from trainer.text.pairs import Answer, Pair
from trainer.text.transcript import EncodedAnswer

PROMPTS = [make_prompt(), make_prompt("Paris?"), make_prompt("What is the capital of the land of Paris?")]
PARAMETERS = SamplingParameters(temperature=0.7, top_p=1.0, max_tokens=6)
HOW: dict[str, Any] = {"n": 3, "parameters": PARAMETERS, "seed": 5}


def change_how(*, n: int = 3, seed: int = 5, **changes: float) -> dict[str, Any]:
    return {"n": n, "parameters": replace(PARAMETERS, **changes), "seed": seed}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    built = build_tiny_backbone()
    with torch.no_grad():
        for parameter in built.adapters.parameters_of("policy").values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return built


@pytest.fixture
def engine(backbone: Backbone) -> Iterator[FakeEngine]:
    said = list(backbone.tokenizer("It is Paris.", add_special_tokens=False).input_ids)
    with run_fake_engine(FakeEngine(said, backbone.transcriber.turn_ends[0])) as running:
        yield running


class FixedPacing:
    """Always the same cap."""

    def __init__(self, cap: int) -> None:
        self.cap, self.heard = cap, []

    def begin(self) -> None:
        self.heard.append("begin")

    def choose_limit(self) -> int:
        return self.cap

    def end(self) -> None:
        self.heard.append("end")


def make_sampler(
    backbone: Backbone, engine: FakeEngine, folder: Path, cap: int = 16, now: Any = time.monotonic
) -> EngineSampler:
    section = SamplingSection(engines=[engine.url], pace_every_s=0.05)
    numbers = iter(range(100))
    return EngineSampler(backbone, section, folder, FixedPacing(cap), number=lambda: next(numbers), now=now)


def test_a_batch_samples_by_the_probabilities_that_scoring_finds(backbone: Backbone) -> None:
    sampled = LocalSampler(backbone).sample(SamplingRequest(PROMPTS, "policy", **HOW))
    assert [len(answers) for answers in sampled] == [3, 3, 3]
    flat = [(prompt, each) for prompt, answers in zip(PROMPTS, sampled, strict=True) for each in answers]
    encoded = [
        EncodedAnswer(backbone.transcriber.encode_prompt(prompt), each.answer.ids or ()) for prompt, each in flat
    ]
    sums, counts = score_answers(backbone, encoded, "policy", temperature=0.7)
    assert counts.tolist() == [len(each.logprobs) for _, each in flat]
    assert sums.tolist() == pytest.approx([math.fsum(each.logprobs) for _, each in flat], abs=1e-4)


def test_answers_end_with_the_turn_end_or_at_the_limit_and_say_so(backbone: Backbone) -> None:
    turn_end = backbone.transcriber.turn_ends[0]
    head = backbone.lm_head.weight
    before = head[turn_end].clone()
    with torch.no_grad():
        head[turn_end] *= 8  # else an untrained policy hardly ever ends
    try:
        sampled = LocalSampler(backbone).sample(SamplingRequest(PROMPTS, "policy", **change_how(n=40, temperature=1.5)))
    finally:
        with torch.no_grad():
            head[turn_end] = before
    answers = [each.answer for answers in sampled for each in answers]
    reasons = {answer.finish_reason for answer in answers}
    assert reasons == {"stop", "length"}
    for answer in answers:
        assert answer.ids
        assert (answer.ids[-1] == turn_end) == answer.is_finished
        assert turn_end not in answer.ids[:-1]
        assert answer.is_finished or len(answer.ids) == PARAMETERS.max_tokens
        said = answer.ids[:-1] if answer.is_finished else answer.ids
        assert answer.text == backbone.transcriber.decode(said)


def test_the_same_seed_gives_the_same_answers_and_another_others(backbone: Backbone) -> None:
    first, again, other = (
        LocalSampler(backbone).sample(SamplingRequest(PROMPTS, "policy", **change_how(seed=seed))) for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_the_likeliest_answer_is_the_same_in_small_batches_and_large(backbone: Backbone) -> None:
    greedy = change_how(n=1, temperature=0.0)
    whole = LocalSampler(backbone).sample(SamplingRequest(PROMPTS, "policy", **greedy))
    alone = LocalSampler(backbone, max_batch_tokens=1).sample(SamplingRequest(PROMPTS, "policy", **greedy))
    assert [each[0].answer.ids for each in whole] == [each[0].answer.ids for each in alone]
    base = LocalSampler(backbone).sample(SamplingRequest(PROMPTS, None, **greedy))
    assert [each[0].answer.ids for each in base] != [each[0].answer.ids for each in whole]


def test_an_answer_never_outgrows_what_the_policy_reads(backbone: Backbone) -> None:
    long = make_prompt("capital " * 8)
    room = backbone.max_tokens - len(backbone.transcriber.encode_prompt(long))
    sampled = LocalSampler(backbone).sample(SamplingRequest([long, PROMPTS[1]], "policy", **change_how(max_tokens=60)))
    assert all(len(each.answer.ids or ()) <= room for each in sampled[0])


def test_top_p_keeps_the_likeliest_tokens_up_to_the_one_that_crosses_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(2000, 1)
    chosen, logprobs = draw_tokens(logits, 1.0, 0.6, torch.Generator().manual_seed(0))
    assert set(chosen.tolist()) == {0, 1}  # .5 alone is less than .6
    assert sorted(set(logprobs.exp().tolist())) == pytest.approx([0.375, 0.625], abs=1e-5)
    assert (chosen == 0).float().mean().item() == pytest.approx(0.625, abs=0.04)


def test_logits_that_are_not_finite_are_no_distribution() -> None:
    with pytest.raises(NotFinite):
        draw_tokens(torch.tensor([[0.0, math.nan]]), 0.7, 1.0, torch.Generator())


def test_what_most_recent_answers_were_sampled_with_is_used_again() -> None:
    def pair(temperature: float | None, limit: int | None, top_p: float | None = None) -> Pair:
        answer = Answer(text="x", temperature=temperature, max_tokens=limit, top_p=top_p)
        return Pair(event_id="e", prompt=make_prompt(), first=answer, second=answer, preferred="first")

    pairs = [pair(0.2, 40), pair(0.9, 40), pair(0.9, 500), pair(None, None)]
    assert choose_parameters(pairs, temperature=0.7, max_tokens=256) == SamplingParameters(0.9, 1.0, 40)
    assert choose_parameters([], temperature=0.7, max_tokens=256) == SamplingParameters(0.7, 1.0, 256)
    assert choose_parameters([pair(None, 4096)], temperature=0.7, max_tokens=256).max_tokens == 256
    imported = [pair(None, None)] * 5
    nucleus = [pair(0.9, 40, 0.8), pair(None, None, 0.8), *imported]
    assert choose_parameters(nucleus, temperature=0.7, max_tokens=256) == SamplingParameters(0.9, 0.8, 40)
    assert choose_parameters([*nucleus, *pairs], temperature=0.7, max_tokens=256).top_p == 1.0


# The engine


def test_the_engine_is_asked_by_ids_at_low_priority_and_gives_ids_back(
    backbone: Backbone, engine: FakeEngine, tmp_path: Path
) -> None:
    sampled = make_sampler(backbone, engine, tmp_path).sample(
        SamplingRequest(PROMPTS, "policy", **change_how(max_tokens=20))
    )
    assert [[each.answer.text for each in answers] for answers in sampled] == [["It is Paris."] * 3] * 3
    ids = (*engine.said, engine.turn_end)
    assert sampled[0][0] == Sampled(
        Answer(text="It is Paris.", ids=ids, finish_reason="stop", temperature=0.7, max_tokens=20, top_p=1.0),
        (-0.5,) * len(ids),
    )
    asked = {tuple(body["prompt"]): body for body in engine.asked}
    assert asked.keys() == {backbone.transcriber.encode_prompt(prompt) for prompt in PROMPTS}
    body = asked[backbone.transcriber.encode_prompt(PROMPTS[0])]
    assert body["model"].startswith("t-") and body["model"].endswith("-0")
    assert {name: body[name] for name in ("n", "temperature", "top_p", "max_tokens", "priority", "return_token_ids")} == {
        "n": 3, "temperature": 0.7, "top_p": 1.0, "max_tokens": 20, "priority": 100, "return_token_ids": True,
    }  # fmt: skip
    assert len({body["seed"] for body in engine.asked}) == 3


def test_the_adapter_is_unloaded_and_its_files_deleted_also_after_a_failure(
    backbone: Backbone, engine: FakeEngine, tmp_path: Path
) -> None:
    sampler = make_sampler(backbone, engine, tmp_path)
    sampler.sample(SamplingRequest(PROMPTS, "policy", **HOW))
    assert (engine.loaded, list(tmp_path.iterdir()), len(engine.unloaded)) == ({}, [], 1)
    engine.fail_on.add("/v1/completions")
    with pytest.raises(EngineFailed, match=r"500.*out of order"):
        sampler.sample(SamplingRequest(PROMPTS, "policy", **HOW))
    assert (engine.loaded, list(tmp_path.iterdir()), len(engine.unloaded)) == ({}, [], 2)
    assert engine.unloaded[0] != engine.unloaded[1]  # a new name every time


def test_what_a_killed_trainer_left_is_unloaded_first(backbone: Backbone, engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "t-old-1").mkdir()
    engine.loaded["t-old-1"] = "gone"
    make_sampler(backbone, engine, tmp_path).sample(SamplingRequest(PROMPTS, "policy", **HOW))
    assert engine.unloaded[0] == "t-old-1"
    assert list(tmp_path.iterdir()) == []


def test_no_more_answers_are_under_way_than_allowed(backbone: Backbone, engine: FakeEngine, tmp_path: Path) -> None:
    sampler = make_sampler(backbone, engine, tmp_path, cap=4)
    sampled = sampler.sample(SamplingRequest(PROMPTS * 3, "policy", **change_how(n=6)))
    assert {len(answers) for answers in sampled} == {6}
    assert 0 < engine.most_in_flight <= 4


def test_the_base_is_sampled_as_an_adapter_that_changes_nothing(
    backbone: Backbone, engine: FakeEngine, tmp_path: Path
) -> None:
    backbone.adapters.reset("stable", like="policy")
    make_sampler(backbone, engine, tmp_path).sample(SamplingRequest(PROMPTS, None, **HOW))
    backbone.adapters.reset("stable")
    tensors = load(engine.weights[0])
    assert all(not tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


def test_answers_without_token_ids_are_no_samples(backbone: Backbone, engine: FakeEngine, tmp_path: Path) -> None:
    engine.said, engine.turn_end = [], 5  # an answer that stops without a turn end
    with pytest.raises(EngineFailed, match="no turn end"):
        make_sampler(backbone, engine, tmp_path).sample(SamplingRequest(PROMPTS, "policy", **HOW))


def test_answers_of_another_vocabulary_are_no_samples(backbone: Backbone, engine: FakeEngine, tmp_path: Path) -> None:
    engine.said = [5, backbone.vocab_size]  # on a GPU such an id would end the process
    with pytest.raises(EngineFailed, match="another vocabulary"):
        make_sampler(backbone, engine, tmp_path).sample(SamplingRequest(PROMPTS, "policy", **HOW))


def test_log_probabilities_that_are_no_numbers_are_none(backbone: Backbone, engine: FakeEngine, tmp_path: Path) -> None:
    engine.logprob = math.nan
    with pytest.raises(EngineFailed, match="not finite"):
        make_sampler(backbone, engine, tmp_path).sample(SamplingRequest(PROMPTS, "policy", **HOW))


def test_while_the_engine_is_away_the_trainer_samples_itself_and_says_so(
    backbone: Backbone, engine: FakeEngine, tmp_path: Path
) -> None:
    clock = [100.0]
    sampler = PreferredSampler(
        make_sampler(backbone, engine, tmp_path), LocalSampler(backbone), 60.0, now=lambda: clock[0]
    )
    engine.fail_on.add("/v1/load_lora_adapter")
    assert sampler.sample(SamplingRequest(PROMPTS, "policy", **HOW)) == LocalSampler(backbone).sample(
        SamplingRequest(PROMPTS, "policy", **HOW)
    )
    assert sampler.source.startswith("local: http://127.0.0.1") and "500" in sampler.source
    engine.fail_on.clear()
    sampler.sample(SamplingRequest(PROMPTS, "policy", **HOW))
    assert sampler.source.startswith("local")  # not asked again so soon
    clock[0] = 160.0
    sampler.sample(SamplingRequest(PROMPTS, "policy", **HOW))
    assert sampler.source == "engine" and engine.asked


def test_samples_are_of_the_adapter_as_it_stood_when_they_were_begun(
    backbone: Backbone, engine: FakeEngine, tmp_path: Path
) -> None:
    stood = backbone.adapters.state("policy")
    wait = make_sampler(backbone, engine, tmp_path).begin(SamplingRequest(PROMPTS, "policy", **HOW))
    assert len(engine.weights) == 1  # loaded before it returned
    backbone.adapters.reset("policy")
    try:
        sampled = wait()
    finally:
        backbone.adapters.restore("policy", stood)
    assert [len(answers) for answers in sampled] == [3, 3, 3]
    assert {name: tensor.tolist() for name, tensor in load(engine.weights[0]).items()} == {
        name: tensor.tolist() for name, tensor in stood.items()
    }
    assert (engine.loaded, list(tmp_path.iterdir())) == ({}, [])


def test_an_engine_that_fails_after_the_beginning_is_made_good_locally(
    backbone: Backbone, engine: FakeEngine, tmp_path: Path
) -> None:
    sampler = PreferredSampler(make_sampler(backbone, engine, tmp_path), LocalSampler(backbone), 60.0)
    engine.fail_on.add("/v1/completions")
    wait = sampler.begin(SamplingRequest(PROMPTS, "policy", **HOW))
    assert wait() == LocalSampler(backbone).sample(SamplingRequest(PROMPTS, "policy", **HOW))
    assert sampler.source.startswith("local: http://127.0.0.1") and "500" in sampler.source
    assert engine.loaded == {}


def test_the_local_sampler_has_sampled_before_begin_returns(backbone: Backbone) -> None:
    sampler = LocalSampler(backbone)
    assert sampler.begin(SamplingRequest(PROMPTS, "policy", **HOW))() == sampler.sample(
        SamplingRequest(PROMPTS, "policy", **HOW)
    )


class Stop(BaseException):
    """As a trainer that is to stop raises it."""


def test_the_local_sampler_says_how_far_it_is_and_may_be_stopped(backbone: Backbone) -> None:
    heard: list[float] = []
    sampler = LocalSampler(backbone, max_batch_tokens=1)  # a batch a prompt
    sampler.sample(SamplingRequest(PROMPTS, "policy", **HOW, hear=heard.append))
    assert heard == sorted(heard) and heard[0] == 0 and heard[-1] < 1
    assert {1 / 3, 2 / 3} <= {round(share * 3) / 3 for share in heard}

    def stop(share: float) -> None:
        if share > 0.5:
            raise Stop

    with pytest.raises(Stop):
        sampler.sample(SamplingRequest(PROMPTS, "policy", **HOW, hear=stop))


def test_whoever_waits_for_an_engine_hears_how_far_it_is_and_may_give_up(
    backbone: Backbone, engine: FakeEngine, tmp_path: Path
) -> None:
    heard: list[float] = []

    def hear(share: float) -> None:
        heard.append(share)
        if share > heard[0]:
            raise Stop

    sampler = make_sampler(backbone, engine, tmp_path, cap=1)
    with pytest.raises(Stop):
        sampler.sample(SamplingRequest(PROMPTS * 2000, "policy", **HOW, hear=hear))
    assert heard[0] < heard[-1] < 1
    until = time.monotonic() + 10
    while sampler._fetches[0].is_running and time.monotonic() < until:
        time.sleep(0.01)
    assert len(engine.asked) < 6000
    assert (engine.loaded, list(tmp_path.iterdir())) == ({}, [])


def test_what_nobody_waits_for_is_given_up_and_leaves_nothing(
    backbone: Backbone, engine: FakeEngine, tmp_path: Path
) -> None:
    sampler = make_sampler(backbone, engine, tmp_path, cap=1)
    wait = sampler.begin(SamplingRequest(PROMPTS * 20, "policy", **HOW))
    sampler.tidy()
    with pytest.raises(GivenUp):
        wait()
    assert len(engine.asked) < 60
    assert (engine.loaded, list(tmp_path.iterdir())) == ({}, [])


def test_what_an_engine_kept_while_it_was_away_is_unloaded_once_it_is_back(
    backbone: Backbone, engine: FakeEngine, tmp_path: Path
) -> None:
    clock = [0.0]
    sampler = make_sampler(backbone, engine, tmp_path, now=lambda: clock[0])
    engine.fail_on.add("/v1/unload_lora_adapter")
    sampler.sample(SamplingRequest(PROMPTS, "policy", **HOW))
    assert len(engine.loaded) == 1
    sampler.tidy()
    engine.fail_on.clear()
    clock[0] = 30.0
    sampler.tidy()
    assert len(engine.loaded) == 1  # not asked again so soon
    clock[0] = 61.0
    sampler.tidy()
    assert engine.loaded == {}


def test_answers_that_one_prompt_gets_in_several_requests_have_seeds_of_their_own(
    backbone: Backbone, engine: FakeEngine, tmp_path: Path
) -> None:
    make_sampler(backbone, engine, tmp_path, cap=2).sample(SamplingRequest(PROMPTS[:1], "policy", **change_how(n=5)))
    seeds = [body["seed"] + k for body in engine.asked for k in range(body["n"])]
    assert [body["n"] for body in engine.asked] == [2, 2, 1]
    assert seeds == list(range(seeds[0], seeds[0] + 5))
