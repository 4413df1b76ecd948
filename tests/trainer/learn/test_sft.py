"""SFT on a tiny model: it learns what was written, token for token, by an adapter or by all weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.learn.pairs import GRUFF, KIND
from tests.trainer.tiny import build_tiny_backbone, encode
from trainer.learn.loop import Snapshots
from trainer.learn.sft import Example, SftStep, run_sft
from trainer.learn.training import NothingToTrainOn
from trainer.model.backbone import Backbone
from trainer.model.logprobs import score_answers
from trainer.sections.training import SftSection

ROUND = SftSection(lr=1e-2, epochs=4, batch_size=4)


def run(backbone: Backbone, answers: list[str], settings: SftSection = ROUND, **options: Any) -> dict[str, float]:
    rows = [encode(backbone, answer) for answer in answers]
    return run_sft(backbone, rows, settings, ids=[f"e{i}" for i in range(len(rows))], **options)


def likelihood(backbone: Backbone, answer: str, adapter: str | None = "policy") -> float:
    return score_answers(backbone, [encode(backbone, answer)], adapter)[0].item()


def test_what_was_written_becomes_likely() -> None:
    backbone = build_tiny_backbone()
    before = likelihood(backbone, KIND), likelihood(backbone, KIND, None)
    figures = run(backbone, [KIND] * 8)
    assert likelihood(backbone, KIND) > before[0] + 3
    assert likelihood(backbone, KIND, None) == before[1]
    assert figures["num_rows"] == 8 and figures["num_steps"] == 8
    assert figures["loss"] == pytest.approx(figures["nll"])


def test_all_weights_are_trained_without_an_adapter_and_the_adapters_stand_still() -> None:
    backbone = build_tiny_backbone()
    before = likelihood(backbone, KIND, None)
    adapters = [p.detach().clone() for p in backbone.adapters.parameters_of("policy").values()]
    run(backbone, [KIND] * 8, adapter=None)
    assert likelihood(backbone, KIND, None) > before + 5
    after = backbone.adapters.parameters_of("policy").values()
    assert all(torch.equal(a, b) for a, b in zip(adapters, after, strict=True))
    assert not any(p.requires_grad for p in backbone.adapters.peft.parameters())


def test_a_step_is_a_mean_over_tokens_whatever_its_micro_batches() -> None:
    backbone = build_tiny_backbone()
    examples = [Example("a", encode(backbone, KIND), 1.0), Example("b", encode(backbone, GRUFF), 1.0)]
    sums, counts = score_answers(backbone, [example.encoded for example in examples], "policy")
    expected = -sums.sum().item() / counts.sum().item()
    for budget, num_parts in ((10_000, 1), (1, 2)):
        backbone.token_budget = budget
        with backbone.adapters.training("policy"):
            parts = SftStep(backbone, examples).make_parts(examples)
            assert len(parts) == num_parts
            assert sum(part()[0].item() for part in parts) == pytest.approx(expected, abs=1e-5)


def test_weights_count_and_nought_leaves_a_row_out() -> None:
    backbone = build_tiny_backbone()
    figures = run(backbone, [KIND, GRUFF] * 4, weights=[1.0, 0.0] * 4)
    assert figures["num_rows"] == 4
    run(alone := build_tiny_backbone(), [KIND] * 4)
    assert likelihood(backbone, GRUFF) == pytest.approx(likelihood(alone, GRUFF), abs=1e-4)


def test_a_heavy_row_is_learnt_before_a_light_one() -> None:
    gains = []
    for weights in ([9.0, 1.0] * 4, [1.0, 9.0] * 4):
        run(backbone := build_tiny_backbone(), [KIND, GRUFF] * 4, weights=weights)
        gains.append(likelihood(backbone, KIND))
    assert gains[0] > gains[1] + 1


def test_a_killed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(share: float, _: dict[str, float]) -> None:
        if share > 0.5:
            raise Killed

    answers = [KIND, GRUFF, "It is Paris.", "Go."] * 3
    expected_figures = run(expected := build_tiny_backbone(), answers)
    with pytest.raises(Killed):
        run(build_tiny_backbone(), answers, snapshots=Snapshots(tmp_path, 2), progress=kill)
    figures = run(resumed := build_tiny_backbone(), answers, snapshots=Snapshots(tmp_path, 2))
    assert figures == expected_figures
    pairs = zip(expected.adapters.state("policy").values(), resumed.adapters.state("policy").values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_row_that_breaks_a_step_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, rejected = build_tiny_backbone(), []
    bad, make = encode(backbone, "Hm, Paris?").answer, backbone.make_batch

    def checked(items: Any) -> Any:
        if any(bad in answers for _, answers in items):
            raise RuntimeError("no kernel takes this row")
        return make(items)

    monkeypatch.setattr(backbone, "make_batch", checked)
    figures = run(
        backbone, [KIND] * 7 + ["Hm, Paris?"], reject=lambda event_id, part, _: rejected.append((event_id, part))
    )
    assert (rejected, figures["num_steps"]) == ([("e7", "sft")], 8)


def test_nothing_to_learn_is_said() -> None:
    with pytest.raises(NothingToTrainOn):
        run(build_tiny_backbone(), [KIND], weights=[0.0])
