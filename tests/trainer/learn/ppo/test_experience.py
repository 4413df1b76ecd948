"""What a policy's answers are worth, token by token, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.learn.prompts import build_backbone, make_rows
from trainer.learn.ppo.experience import Experience, ExperienceMaker, NothingLearnable
from trainer.learn.ppo.step import PpoStep
from trainer.learn.ppo.value import start_value, token_values
from trainer.learn.reward.adapter import AdapterPart
from trainer.learn.reward.inputs import Read
from trainer.learn.reward.reservoir import Key
from trainer.learn.rewards.rewards import Part, Rewards
from trainer.learn.sampling.sampler import Sampled
from trainer.model.backbone import Backbone
from trainer.model.logprobs import score_answers
from trainer.sections.reward import RewardSection
from trainer.sections.training import PpoSection
from trainer.text.pairs import Answer
from trainer.text.transcript import EncodedAnswer

PLAIN = PpoSection(whiten=False, lam=1.0, kl_coefficient=0.0)
TEMPERATURE = 0.7


def say(backbone: Backbone, row: int, *ids: int, is_finished: bool = True, off: float = 0.0) -> Sampled:
    """An answer of adapter "policy" as a sampler would give it, its log-probabilities off by so much a token."""
    prompt = backbone.transcriber.encode_prompt(make_rows()[row].prompt)
    sums = []
    for end in range(len(ids) + 1):  # of ever longer answers: their differences are the tokens' own
        answer = [EncodedAnswer(prompt, ids[:end])] if end else []
        sums.append(score_answers(backbone, answer, "policy", temperature=TEMPERATURE)[0].sum().item())
    logprobs = tuple(b - a + off for a, b in pairwise(sums))
    return Sampled(Answer(text="said", ids=ids, finish_reason="stop" if is_finished else "length"), logprobs)


def reward_first_token(samples: Any) -> list[float]:
    return [float(each.encoded.answer[0]) for each in samples]


def make(
    backbone: Backbone,
    said: list[list[Sampled]],
    section: PpoSection = PLAIN,
    kl_coefficient: float = 0.0,
    **options: Any,
) -> Experience | None:
    chosen: dict[str, Any] = {
        "rewards": Rewards([Part("first", 0.1, reward_first_token), Part("none", 0.0, reward_first_token)]),
        "reference": None,
        "references": None,
        "temperature": TEMPERATURE,
        "blame": lambda event_id, error: pytest.fail(f"{event_id}: {error}"),
        **options,
    }
    maker = ExperienceMaker(backbone, section, start_value(backbone), **chosen)
    return maker.make(make_rows()[: len(said)], said, kl_coefficient)


def test_the_score_stands_at_the_last_token_and_a_cut_answer_loses_1() -> None:
    backbone = build_backbone()
    said = [[say(backbone, 0, 20, 21, 22), say(backbone, 0, 30, 31, is_finished=False)]]
    made = make(backbone, said, PLAIN.model_copy(update={"gamma": 0.5}))
    assert made is not None
    assert made.returns.tolist() == pytest.approx([0.5, 1.0, 2.0, 1.0, 2.0], abs=1e-6)  # 2, and 3 - 1, halved a token
    assert made.advantages.tolist() == made.returns.tolist()  # values are 0
    figures = made.figures
    assert (figures["reward"], figures["reward_first"], figures["reward_none"]) == pytest.approx((2.5, 2.5, 0.0))
    assert (figures["finished"], figures["answer_tokens"], figures["dropped"]) == (0.5, 2.5, 0.0)
    assert figures["value"] == 0.0 and figures["explained_variance"] == 0.0


def test_every_token_pays_for_its_share_of_kl() -> None:
    backbone = build_backbone()
    said = [[say(backbone, 0, 20, 21)]]
    old = torch.tensor(said[0][0].logprobs)
    made = make(backbone, said, kl_coefficient=0.5, references=lambda _: old - torch.tensor([0.2, -0.6]))
    assert made is not None
    assert made.returns.tolist() == pytest.approx([2.0 + 0.3 - 0.1, 2.0 + 0.3], abs=1e-4)
    assert made.figures["kl"] == pytest.approx(-0.4, abs=1e-4)


def test_advantages_are_whitened_over_all_tokens() -> None:
    backbone = build_backbone()
    made = make(backbone, [[say(backbone, 0, 10), say(backbone, 0, 20), say(backbone, 0, 30)]], PpoSection())
    assert made is not None
    assert made.advantages.tolist() == pytest.approx([-1.224745, 0.0, 1.224745], abs=1e-4)


def test_old_log_probabilities_are_the_policys_own_at_the_temperature_it_was_sampled_at() -> None:
    backbone = build_backbone()
    answers = [[say(backbone, 0, 20, 21, off=0.1)], [say(backbone, 1, 30, 31, 32)]]
    made = make(backbone, answers)
    assert made is not None
    drawn = torch.tensor([*answers[0][0].logprobs, *answers[1][0].logprobs])
    assert (made.old - drawn).tolist() == pytest.approx([-0.1, -0.1, 0.0, 0.0, 0.0], abs=1e-3)
    assert made.weights.tolist() == pytest.approx([math.exp(-0.1)] * 2 + [1.0] * 3, abs=1e-3)
    assert made.event_ids == ("e0", "e1")


def test_answers_that_another_policy_must_have_said_are_dropped_and_counted() -> None:
    backbone = build_backbone()
    answers = [[say(backbone, 0, 20, 21, off=0.75), say(backbone, 0, 22, off=-0.65), say(backbone, 0, 23, off=-0.75)]]
    made = make(backbone, answers)
    assert made is not None
    assert [answer.answer for answer in made.answers] == [(22,)]
    assert (made.figures["dropped"], made.figures["num_answers"], made.figures["num_sampled"]) == (2, 1, 3)
    with pytest.raises(NothingLearnable, match="of 1 answers 1 were dropped"):
        make(backbone, [[answers[0][0]]])


def test_a_row_whose_reward_fails_or_is_no_number_goes_alone() -> None:
    backbone, rejected = build_backbone(), []

    def measure(samples: Any) -> list[float]:
        if any(each.encoded.answer == (21,) for each in samples):
            raise RuntimeError("no reward for this")
        return [math.nan if each.encoded.answer == (22,) else 1.0 for each in samples]

    said = [[say(backbone, row, 20 + row)] for row in range(4)]
    made = make(
        backbone, said, rewards=Rewards([Part("odd", 1.0, measure)]),
        blame=lambda event_id, error: rejected.append((event_id, type(error).__name__)),
    )  # fmt: skip
    assert made is not None and made.event_ids == ("e0", "e3") and made.figures["failed"] == 2
    assert rejected == [("e1", "RuntimeError"), ("e2", "NotFinite")]


def test_experience_on_disk_is_the_same_experience(tmp_path: Path) -> None:
    backbone = build_backbone()
    made = make(backbone, [[say(backbone, 0, 20, 21), say(backbone, 0, 22)], [say(backbone, 1, 30)]])
    assert made is not None
    made.save(tmp_path / "made.safetensors")
    loaded = Experience.load(tmp_path / "made.safetensors")
    for name in ("event_ids", "answers", "figures"):
        assert getattr(loaded, name) == getattr(made, name)
    for name in ("old", "values", "weights", "advantages", "returns"):
        assert torch.equal(getattr(loaded, name), getattr(made, name))
    assert [list(places) for places in loaded.list_places()] == [[0, 1], [2], [3]]


# One step of it


def test_micro_batches_add_up_to_the_whole_step_and_each_part_moves_its_own_adapter() -> None:
    backbone = build_backbone()
    head = start_value(backbone)
    said = [[say(backbone, row, 20 + row, 30), say(backbone, row, 40, 41, 42)] for row in range(4)]
    made = make(backbone, said, PpoSection())
    assert made is not None
    made = dataclasses.replace(made, old=made.old - 0.1 * torch.arange(len(made.old)) / len(made.old))
    groups = {
        "policy": backbone.adapters.parameters_of("policy"),
        "value": backbone.adapters.parameters_of("value"),
        "head": dict(head.named_parameters()),
    }
    found = []
    for budget in (10_000, 1):
        backbone.token_budget = budget
        with torch.no_grad():
            head.linear.weight.fill_(0.1)  # so that the adapter takes gradients, too
        with backbone.adapters.training_in_turn() as switch:
            step = PpoStep(backbone, PpoSection(), head, made, temperature=TEMPERATURE, switch=switch)
            parts = step.make_parts([(0, 1), (2, 3), (4, 5), (6, 7)])
            assert len(parts) == (2 if budget > 1 else 8)
            figures: dict[str, float] = {}
            for part in parts:
                loss, added = part()
                loss.backward()
                for name, value in added.items():
                    figures[name] = figures.get(name, 0.0) + value
        gradients = {name: [p.grad for p in group.values() if p.grad is not None] for name, group in groups.items()}
        found.append(
            ({n: torch.cat([g.flatten() for g in gs]) for n, gs in gradients.items()}, step.summarise(figures))
        )
        backbone.adapters.peft.zero_grad()
        head.zero_grad()
    (whole, figures), (split, same) = found
    for name, gradient in whole.items():
        assert torch.allclose(gradient, split[name], atol=1e-6) and gradient.abs().max() > 1e-5, name
    assert figures == pytest.approx(same, rel=1e-4, abs=1e-5)
    assert figures["tokens"] == 20 and 0 < figures["approximate_kl"] < 0.01


# What had been expected


def test_a_value_starts_as_what_the_reward_says_of_the_answer_so_far() -> None:
    backbone = build_backbone()
    part = AdapterPart(backbone, "reward", RewardSection(), 0)
    untaught = start_value(backbone, part)
    assert not untaught.linear.weight.any() and not untaught.linear.bias.any()
    prompt = backbone.transcriber.encode_prompt(make_rows()[0].prompt)
    said = Read(Key("r"), prompt, ((20, 21, 22),), ("said",))
    with torch.no_grad():
        for parameter in (*backbone.adapters.parameters_of("reward").values(), part.head.linear.weight):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    part.standardiser.fix(torch.randn(50, backbone.hidden_size) + 0.3)
    part.loop.step_number = 1
    (score,) = part.score([said], lambda row, error: pytest.fail(str(error)))[0].tolist()
    head = start_value(backbone, part, share=0.5)
    batch = backbone.make_batch([(prompt, [(20, 21, 22, 5)])])
    with backbone.adapters.inferring("value"):
        values = token_values(backbone, head, batch)
    assert score != 0 and values[3].item() == pytest.approx(0.5 * score, abs=1e-5)
