"""Pairs that the reward model labels: which two of the answers, which of them wins, how sure; and when there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.trainer.tiny import TEXTS, build_tiny_backbone, make_prompt
from trainer.learn.labelled import Label, explain_distrust, label_candidates, make_labelled
from trainer.learn.reward.prequential import Foreseen, Prequential
from trainer.learn.rewards.rewards import Part, Rewards, Sample
from trainer.learn.sampling.sampler import Sampled, Samples, SamplingParameters, SamplingRequest
from trainer.model.backbone import Backbone
from trainer.sections.training import DpoSection
from trainer.text.labelled_rows import Labelled
from trainer.text.pairs import Answer, PromptRow

PARAMETERS = SamplingParameters(1.0, 1.0, 16)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_tiny_backbone()


class ScriptedSampler:
    """Says these texts, the same to every prompt."""

    source = "script"

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def sample(self, request: SamplingRequest) -> Samples:
        return [[Sampled(Answer(text=text), ()) for text in self.texts[: request.n]] for _ in request.prompts]


def label(
    backbone: Backbone, texts: Sequence[str], worth: dict[str, list[float]], num: int = 9, num_prompts: int = 2
) -> Labelled:
    """worth: what each answer is worth under each draw."""

    def draw(samples: Sequence[Sample]) -> Tensor:
        return torch.tensor([worth[sample.answer.text] for sample in samples])

    return make_labelled(
        backbone,
        ScriptedSampler(*texts),
        [PromptRow(f"event-{i}", make_prompt(f"{TEXTS[0]} {i}")) for i in range(num_prompts)],
        DpoSection(),
        num=num,
        adapter="policy",
        parameters=PARAMETERS,
        draw=draw,
        log_nu=0.0,
        round_number=12,
        seed=1,
        reject=lambda *_: pytest.fail("nothing is to be rejected"),
    )


def test_the_best_wins_against_the_worst_by_the_mean_over_draws() -> None:
    draws = torch.tensor([[2.0, 2.0], [0.0, 0.0], [1.0, 1.0]])
    assert label_candidates(draws, 0, 0.0) == Label(0, 1, pytest.approx(0.880797, abs=1e-6))
    # Rao and Kupper, nu 3: .475367 wins and .109232 losses in a hundred, the others tie
    nu_3 = label_candidates(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), 0, torch.tensor(3.0).log().item())
    assert nu_3 == Label(1, 0, pytest.approx(0.475367 / (0.475367 + 0.109232), abs=1e-6))


def test_a_draw_that_is_at_odds_with_the_others_chooses_the_pair_and_not_the_label() -> None:
    found = label_candidates(torch.tensor([[1.0, -2.0], [0.0, 2.0]]), 0, 0.0)
    assert found == Label(1, 0, pytest.approx(1 - (0.731059 + 0.017986) / 2, abs=1e-6))


def test_pairs_have_ids_of_their_own_and_weigh_what_they_are_sure_of(backbone: Backbone) -> None:
    made = label(backbone, ["It is Paris.", "Go away."], {"It is Paris.": [1.0, 1.0], "Go away.": [-1.0, -1.0]})
    assert [each.pair.event_id for each in made.pairs] == ["labelled-12-0", "labelled-12-1"]
    assert [each.source for each in made.pairs] == ["event-0", "event-1"]
    pair = made.pairs[0].pair
    assert (pair.first.text, pair.second.text, pair.preferred) == ("It is Paris.", "Go away.", "first")
    assert pair.weight == made.pairs[0].probability == pytest.approx(0.880797, abs=1e-6)
    assert made.figures() == {"num_labelled": 2.0, "labelled_probability": pytest.approx(0.880797, abs=1e-6)}
    assert (made.num_prompts, made.num_alike, made.num_unsure, made.reason) == (2, 0, 0, "")


def test_no_more_than_are_allowed(backbone: Backbone) -> None:
    worth = {"It is Paris.": [1.0], "Go away.": [-1.0]}
    made = label(backbone, list(worth), worth, num=2, num_prompts=5)
    assert [each.source for each in made.pairs] == ["event-0", "event-1"]


def test_what_the_model_is_unsure_of_is_dropped(backbone: Backbone) -> None:
    made = label(backbone, ["It is Paris.", "Go away."], {"It is Paris.": [3.0, -3.0], "Go away.": [0.0, 0.0]})
    assert (made.pairs, made.num_unsure) == ([], 2)
    assert "confidence" in made.reason


def test_answers_that_read_the_same_make_no_pair(backbone: Backbone) -> None:
    made = label(backbone, ["It is Paris.", " It is Paris. ", "", "  "], {})
    assert (made.pairs, made.num_alike, made.num_unsure) == ([], 2, 0)


def test_a_prompt_that_cannot_be_encoded_is_set_aside(backbone: Backbone) -> None:
    rejected: list[str] = []
    prompts = [PromptRow("event-0", make_prompt("long " * 200)), PromptRow("event-1", make_prompt())]
    made = make_labelled(
        backbone, ScriptedSampler("It is Paris.", "Go away."), prompts, DpoSection(), num=9, adapter="policy",
        parameters=PARAMETERS, draw=lambda samples: torch.tensor([[1.0], [-1.0]]), log_nu=0.0, round_number=1, seed=1,
        reject=lambda event_id, part, error: rejected.append(event_id),
    )  # fmt: skip
    assert (rejected, [each.source for each in made.pairs]) == (["event-0"], ["event-1"])


def test_other_parts_of_the_reward_are_added_to_every_draw(backbone: Backbone) -> None:
    rewards = Rewards(
        [Part("preference", 2.0, lambda samples: pytest.fail("given")), Part("harm", 1.0, lambda samples: [-3.0, 0.5])]
    )
    samples = [Sample(make_prompt(), Answer(text="x"), None)] * 2  # type: ignore[arg-type]
    added = rewards.spread(samples, torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
    assert added.tolist() == [[-1.0, 1.0], [0.5, -1.5]]


def make_record(right: int, wrong: int, logit: float = 1.0) -> Prequential:
    sides = ["first"] * right + ["second"] * wrong
    return Prequential(rows=[Foreseen(str(i), side, logit) for i, side in enumerate(sides)])


def test_a_reward_model_that_foresees_too_little_labels_nothing() -> None:
    assert explain_distrust(3, make_record(45, 15), 0.6) == ""
    assert "has learnt nothing" in explain_distrust(0, make_record(45, 15), 0.6)
    assert "30 are needed" in explain_distrust(3, make_record(25, 4), 0.6)
    assert explain_distrust(3, make_record(33, 27), 0.6) == (
        "the reward model foresaw 55% of the last 60 choices, below 60%"
    )


def test_choices_between_picked_answers_say_whether_picked_pairs_may_be_labelled() -> None:
    picked = [replace(row, event_id=f"picked-{row.event_id}", may_judge=False) for row in make_record(45, 15).rows]
    assert explain_distrust(3, Prequential(rows=[*make_record(5, 2).rows, *picked]), 0.6) == ""
    assert "foresaw 48%" in explain_distrust(3, Prequential(rows=[*make_record(1, 40).rows, *picked[:55]]), 0.6)


def test_a_reward_model_whose_chances_are_off_labels_nothing_whatever_it_was_asked_about() -> None:
    sides = [("first", 1.0)] * 150 + [("second", 1.0)] * 30 + [("first", 3.0)] * 60 + [("second", 3.0)] * 60
    rows = [Foreseen(str(i), side, logit, may_judge=False) for i, (side, logit) in enumerate(sides)]
    assert "chances are off" in explain_distrust(3, Prequential(rows=rows), 0.6)


def test_a_sampled_answer_keeps_the_ids_it_was_sampled_with(backbone: Backbone) -> None:
    from trainer.learn.sampling.sampler import LocalSampler

    row = PromptRow("event-0", replace(make_prompt(), ids=backbone.transcriber.encode_prompt(make_prompt())))
    made = make_labelled(
        backbone, LocalSampler(backbone), [row], DpoSection(labelled_samples=8), num=1, adapter="policy",
        parameters=PARAMETERS, draw=lambda samples: torch.arange(len(samples))[:, None] * 3.0, log_nu=0.0,
        round_number=1, seed=1, reject=lambda *_: pytest.fail("nothing is to be rejected"),
    )  # fmt: skip
    encoded = backbone.transcriber.encode_pair(made.pairs[0].pair)
    first = made.pairs[0].pair.first
    assert first.ids is not None and encoded.first == (
        first.ids if first.is_finished else first.ids[: len(encoded.first)]
    )
