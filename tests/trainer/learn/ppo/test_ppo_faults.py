"""What a PPO round makes of samples, rewards and references that are not as they should be."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.tiny import build_tiny_backbone, make_prompt
from trainer.learn.isolation import NotFinite
from trainer.learn.loop import Snapshots
from trainer.learn.ppo.run import run_ppo
from trainer.learn.rewards.rewards import Part, Rewards, Sample
from trainer.learn.sampling.sampler import Sampled, Samples, SamplingParameters, SamplingRequest
from trainer.learn.training import NothingToTrainOn
from trainer.model.backbone import Backbone
from trainer.model.logprobs import token_logprobs
from trainer.sections.training import PpoSection
from trainer.text.pairs import Answer, Prompt, PromptRow
from trainer.text.transcript import EncodedAnswer

ROUND = PpoSection(
    lr=1e-2,
    iterations=2,
    prompts_per_iteration=3,
    samples_per_prompt=2,
    epochs=2,
    minibatches=1,
    max_approximate_kl=1e9,
)
PROMPTS = [PromptRow(f"e{i}", make_prompt(text)) for i, text in enumerate(("Is it?", "Go away.", "Where is Paris?"))]
Logprobs = Callable[[int, list[float]], Sequence[float]]


class GivenSampler:
    """Gives the same ids to every prompt, drawn by the policy as it stands; `tell` may say otherwise of answer number i."""

    source = "given"

    def __init__(
        self, backbone: Backbone, answers: Sequence[tuple[int, ...]], tell: Logprobs = lambda i, drawn: drawn
    ) -> None:
        self._backbone, self._answers, self._tell = backbone, answers, tell
        self.asked: list[SamplingParameters] = []

    def sample(self, request: SamplingRequest) -> Samples:
        self.asked.append(request.parameters)
        temperature, numbers = request.parameters.temperature, range(request.n)
        return [[self._say(prompt, request.adapter, i, temperature) for i in numbers] for prompt in request.prompts]

    def begin(self, request: SamplingRequest) -> Callable[[], Samples]:
        sampled = self.sample(request)
        return lambda: sampled

    def _say(self, prompt: Prompt, adapter: str | None, i: int, temperature: float) -> Sampled:
        ids, backbone = self._answers[i], self._backbone
        if not ids:
            return Sampled(Answer(text="", ids=()), ())
        with backbone.adapters.inferring(adapter):
            batch = backbone.make_batch([(backbone.transcriber.encode_prompt(prompt), [ids])])
            drawn = token_logprobs(backbone, batch, temperature)[0].tolist()
        reason = "stop" if ids[-1] in backbone.transcriber.turn_ends else "length"
        return Sampled(Answer(text="", ids=ids, finish_reason=reason), tuple(self._tell(i, drawn)))


def run(backbone: Backbone, sampler: GivenSampler, section: PpoSection = ROUND, **options: Any) -> dict[str, float]:
    chosen: dict[str, Any] = {
        "rewards": Rewards([Part("ids", 1.0, lambda some: [float(sum(e.encoded.answer) % 7) for e in some])]),
        "parameters": SamplingParameters(1.0, 1.0, 8),
        "reference": None,
        "reject": lambda *_: pytest.fail("no row is to blame"),
        **options,
    }
    return run_ppo(backbone, chosen.pop("prompts", PROMPTS), section, sampler=sampler, **chosen)


def weights_of(backbone: Backbone) -> Tensor:
    return torch.cat([p.detach().flatten() for p in backbone.adapters.parameters_of("policy").values()])


def reward_all(value: float) -> Rewards:
    return Rewards([Part("constant", 1.0, lambda some: [value] * len(some))])


def test_a_reward_that_is_no_number_for_any_answer_ends_the_round_and_blames_no_choice() -> None:
    backbone = build_tiny_backbone()
    with pytest.raises(NotFinite):
        run(backbone, GivenSampler(backbone, [(20, 21), (30,)]), rewards=reward_all(math.nan))


def test_a_reward_that_is_no_number_for_one_prompt_leaves_out_its_answers_and_no_persons_choice() -> None:
    backbone = build_tiny_backbone()

    def measure(samples: Sequence[Sample]) -> list[float]:
        return [math.nan if each.prompt == PROMPTS[1].prompt else 1.0 for each in samples]

    figures = run(
        backbone,
        GivenSampler(backbone, [(20, 21), (30,)]),
        rewards=Rewards([Part("odd", 1.0, measure)]),
    )
    assert (figures["num_answers"], figures["failed"], figures["dropped"]) == (2 * 4, 2 * 2, 0)


def test_a_reference_that_is_no_number_leaves_out_its_answer_and_spoils_no_other() -> None:
    backbone = build_tiny_backbone()

    def refer(answers: Sequence[EncodedAnswer]) -> Tensor:
        last = backbone.transcriber.encode_prompt(PROMPTS[2].prompt)
        return torch.cat([torch.full((len(a.answer),), math.nan if a.prompt == last else -5.0) for a in answers])

    figures = run(
        backbone,
        GivenSampler(backbone, [(20, 21), (30,)]),
        references=refer,
    )
    assert (figures["num_answers"], figures["failed"]) == (2 * 4, 2 * 2) and math.isfinite(figures["policy_loss"])


def test_a_prompt_that_the_policy_cannot_answer_costs_its_answers_alone() -> None:
    class Stumbling(GivenSampler):
        def sample(self, request: SamplingRequest) -> Samples:
            if PROMPTS[0].prompt in request.prompts:
                raise NotFinite("a logit is no number")
            return super().sample(request)

    backbone = build_tiny_backbone()
    figures = run(backbone, Stumbling(backbone, [(20, 21), (30,)]))
    assert (figures["num_answers"], figures["failed"]) == (2 * 4, 2 * 2)


def test_a_round_whose_answers_are_all_dropped_says_how_many_were() -> None:
    backbone = build_tiny_backbone()
    sampler = GivenSampler(backbone, [(20, 21), (30,)], lambda i, drawn: [each - 1 for each in drawn])  # e > 2
    with pytest.raises(NothingToTrainOn, match="of 6 answers 6 were dropped"):
        run(backbone, sampler)


@pytest.mark.parametrize("told", [[math.nan, math.nan], [-math.inf, -1.0], [-1.0], []])
def test_an_answer_with_odd_log_probabilities_is_dropped_and_counted(told: list[float]) -> None:
    backbone = build_tiny_backbone()
    figures = run(backbone, GivenSampler(backbone, [(20, 21), (30,)], lambda i, drawn: drawn if i else told))
    assert (figures["dropped"], figures["num_answers"]) == (2 * 3, 2 * 3)


def test_answers_that_were_dropped_count_also_where_an_iteration_had_no_others() -> None:
    backbone, num_told = build_tiny_backbone(), 0

    def tell(i: int, drawn: list[float]) -> list[float]:
        nonlocal num_told
        num_told += 1
        return [each - 1 for each in drawn] if num_told <= 6 else drawn

    figures = run(backbone, GivenSampler(backbone, [(20, 21), (30,)], tell))
    assert (figures["dropped"], figures["num_answers"]) == (6, 6)


def test_an_answer_of_nothing_is_passed_over() -> None:
    backbone = build_tiny_backbone()
    figures = run(backbone, GivenSampler(backbone, [(20, 21), ()]))
    assert (figures["dropped"], figures["num_answers"]) == (0, 2 * 3)


def test_answers_of_nothing_alone_leave_nothing_to_train_on() -> None:
    backbone = build_tiny_backbone()
    before = weights_of(backbone)
    with pytest.raises(NothingToTrainOn):
        run(backbone, GivenSampler(backbone, [(), ()]))
    assert torch.equal(weights_of(backbone), before)


def test_answers_of_one_token_that_are_all_worth_the_same_teach_the_policy_nothing() -> None:
    backbone = build_tiny_backbone()
    before = weights_of(backbone)
    section = ROUND.model_copy(update={"lr": 1e-3, "iterations": 1, "epochs": 1, "missing_end_penalty": 0.0})
    figures = run(backbone, GivenSampler(backbone, [(20,), (30,)]), section, rewards=reward_all(3.0))
    assert figures["policy_loss"] == 0 and figures["explained_variance"] == 0 and figures["return"] == 3.0
    assert torch.equal(weights_of(backbone), before)


def test_a_prompt_just_short_of_the_limit_gets_an_answer_of_one_token_and_one_at_it_is_rejected() -> None:
    backbone, rejected = build_tiny_backbone(max_tokens=24), []
    fitting = next(
        row
        for row in (PromptRow(f"long{n}", make_prompt("Paris" + " is" * n)) for n in range(40))
        if len(backbone.transcriber.encode_prompt(row.prompt)) == 23
    )
    too_long = PromptRow("too long", make_prompt("Paris" + " is" * 40))
    section = ROUND.model_copy(update={"prompts_per_iteration": 2})
    figures = run(
        backbone,
        GivenSampler(backbone, [(20,), (30,)]),
        section,
        prompts=[fitting, too_long],
        reject=lambda event_id, *_: rejected.append(event_id),
    )
    assert rejected == ["too long"] and figures["answer_tokens"] == 1


def test_the_likeliest_answers_of_an_app_at_temperature_0_are_drawn_warmer_in_a_round() -> None:
    backbone = build_tiny_backbone()
    sampler = GivenSampler(backbone, [(20, 21), (30,)])
    run(backbone, sampler, parameters=SamplingParameters(0.0, 0.5, 1000))
    assert sampler.asked[0] == SamplingParameters(0.3, 1.0, 128)


def test_a_round_killed_between_its_samples_file_and_the_next_snapshot_goes_on_with_those_samples(
    tmp_path: Path,
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"

    def copy(share: float, figures: dict[str, float]) -> None:
        if figures["iteration"] == 1 and not other.exists():
            shutil.copytree(one, other)  # as a kill during the first step would have left it

    whole, again = build_tiny_backbone(), build_tiny_backbone()
    run(whole, GivenSampler(whole, [(20, 21), (30,)]), snapshots=Snapshots(one, 10**6), progress=copy)
    sampler = GivenSampler(again, [(40, 41), (50,)])  # others than before: they must not be needed
    run(again, sampler, snapshots=Snapshots(other, 10**6))
    assert not sampler.asked and torch.equal(weights_of(again), weights_of(whole))
