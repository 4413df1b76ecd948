"""A DPO round on a tiny model: it moves towards what was chosen, goes on after a kill, and learns nothing twice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.learn.pairs import GRUFF, KIND, encode_all, make_kind_pairs, make_pair, refer_to_base
from tests.trainer.tiny import build_tiny_backbone, encode
from trainer.learn.dpo import MOVED_NATS, NothingToTrainOn, run_dpo
from trainer.learn.dpo_step import DpoStep, Preference
from trainer.learn.isolation import NotFinite, RoundAborted
from trainer.learn.loop import Snapshots
from trainer.model.backbone import Backbone
from trainer.model.logprobs import score_answers
from trainer.sections.training import DpoSection
from trainer.settings import TrainerSettings
from trainer.text.pairs import Pair

ROUND = DpoSection(lr=3e-3, epochs=2, batch_size=8)


def run(backbone: Backbone, pairs: list[Pair], settings: DpoSection = ROUND, **options: Any) -> dict[str, float]:
    return run_dpo(backbone, encode_all(backbone, pairs), settings, references=refer_to_base(backbone), **options)


def lean(backbone: Backbone) -> float:
    """How much likelier the kind answer is than the gruff one, in nats."""
    sums, _ = score_answers(backbone, [encode(backbone, KIND), encode(backbone, GRUFF)], "policy")
    return (sums[0] - sums[1]).item()


def weights_of(backbone: Backbone) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in backbone.adapters.parameters_of("policy").values()])


class Killed(BaseException):
    """Stands for kill -9."""


# What it learns


def test_a_round_leans_towards_the_chosen_answers_and_says_how_far() -> None:
    backbone = build_tiny_backbone()
    before = lean(backbone)
    seen: list[tuple[float, dict[str, float]]] = []
    figures = run(backbone, make_kind_pairs(32), progress=lambda share, step: seen.append((share, step)))
    assert lean(backbone) > before + 1
    assert [share for share, _ in seen] == pytest.approx([i / 8 for i in range(1, 9)])
    first, last = seen[0][1], seen[-1][1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5) and last["loss"] < 0.65
    assert first["log_ratio"] == pytest.approx(0, abs=1e-4)
    assert last["margin"] == pytest.approx(0.1 * last["log_ratio"])
    assert last["log_ratio"] == pytest.approx(last["chosen_ratio"] - last["rejected_ratio"], abs=1e-4)
    assert last["chosen_logprob"] - last["rejected_logprob"] == pytest.approx(last["log_ratio"] + before, abs=0.01)
    assert (figures["num_pairs"], figures["num_ties"], figures["num_steps"]) == (32, 0, 8)
    assert figures["accuracy"] > 0.9 and figures["kl"] > 0 and figures["grad_norm"] > 0
    assert figures["moved"] == 1 and figures["log_ratio_abs"] > MOVED_NATS


def test_a_round_that_moved_nothing_says_so() -> None:
    figures = run(build_tiny_backbone(), make_kind_pairs(16), ROUND.model_copy(update={"lr": 1e-7}))
    assert figures["moved"] == 0 and figures["log_ratio_abs"] < 0.01


def test_opposite_choices_lean_the_other_way() -> None:
    backbone = build_tiny_backbone()
    before = lean(backbone)
    run(backbone, [dataclasses.replace(p, first=p.second, second=p.first) for p in make_kind_pairs(32)])
    assert lean(backbone) < before - 1


@pytest.mark.parametrize("loss", ["sigmoid_norm", "ipo", "robust", "rdpo", "hinge", "exo_pair", "apo_zero", "aot"])
def test_every_kind_of_loss_leans_towards_the_chosen_answers(loss: str) -> None:
    backbone = build_tiny_backbone()
    before = lean(backbone)
    run(backbone, make_kind_pairs(16), DpoSection(lr=3e-3, epochs=2, loss=loss))  # type: ignore[arg-type]
    assert lean(backbone) > before + 0.5


def test_the_learning_rate_follows_from_the_preset_unless_it_is_set() -> None:
    rates: list[float] = []
    flat = {"warmup_share": 0.0, "decay": "none"}
    for backbone, settings in (
        (build_tiny_backbone(), DpoSection(**flat)),
        (build_tiny_backbone(preset="small"), DpoSection(**flat)),
        (build_tiny_backbone(preset="gpu"), DpoSection(**flat)),
        (build_tiny_backbone(), DpoSection(lr=5e-6, **flat)),
    ):
        run(backbone, make_kind_pairs(4), settings, progress=lambda share, step: rates.append(step["lr"]))
    assert rates == pytest.approx([1e-3, 2e-4, 2e-5, 5e-6])


@pytest.mark.parametrize(("max_steps", "taken"), [(0, 8), (5, 5), (3, 3), (100, 8)])
def test_a_round_takes_no_more_steps_than_it_may_and_its_rate_decays_over_them(max_steps: int, taken: int) -> None:
    rates: list[float] = []
    figures = run(
        build_tiny_backbone(),
        make_kind_pairs(32),
        ROUND.model_copy(update={"max_steps": max_steps, "warmup_share": 0.0}),
        progress=lambda share, step: rates.append(step["lr"]),
    )
    assert figures["num_steps"] == len(rates) == taken
    assert rates == pytest.approx([3e-3 * (taken - i) / taken for i in range(taken)])


def test_the_demo_keeps_its_own_round() -> None:
    dpo = TrainerSettings(preset="demo").trainer.dpo
    assert (dpo.lr, dpo.epochs, dpo.max_new_pairs, dpo.loss) == (1e-3, 3, 400, "sigmoid")


def test_base_and_stable_stand_still() -> None:
    backbone = build_tiny_backbone()
    answers = [encode(backbone, KIND)]
    before = [score_answers(backbone, answers, name)[0].item() for name in ("stable", "reward", None)]
    run(backbone, make_kind_pairs(8))
    assert [score_answers(backbone, answers, name)[0].item() for name in ("stable", "reward", None)] == before


# Ties and weights


def test_ties_pull_a_policy_that_leans_back_to_the_reference() -> None:
    backbone = build_tiny_backbone()
    before = lean(backbone)
    run(backbone, make_kind_pairs(32))
    leant = lean(backbone)
    figures = run(backbone, make_kind_pairs(1) + [make_pair(f"tie-{i}", KIND, GRUFF, "tie") for i in range(31)])
    assert (figures["num_pairs"], figures["num_ties"]) == (1, 31)
    assert before < lean(backbone) < leant - 1


def test_ties_alone_teach_nothing() -> None:
    pairs = [make_pair(f"tie-{i}", KIND, GRUFF, preferred) for i, preferred in enumerate(["tie", "both_bad"])]
    with pytest.raises(NothingToTrainOn):
        run(build_tiny_backbone(), pairs)


def test_a_pair_without_weight_is_left_out_and_weights_are_normalised_over_the_epoch() -> None:
    states = []
    pairs = [*make_kind_pairs(7), make_pair("x", "Go.", KIND, "first")]
    for weights in ([1.0] * 8, [2.0] * 8, [1.0] * 7 + [0.0]):
        backbone = build_tiny_backbone()
        figures = run(backbone, pairs, weights=weights)
        states.append(weights_of(backbone))
    assert torch.allclose(states[0], states[1], atol=1e-6)
    assert not torch.allclose(states[0], states[2], atol=1e-6)
    assert figures["num_pairs"] == 7


def make_preference(backbone: Backbone, weight: float, chosen: str = KIND, rejected: str = GRUFF) -> Preference:
    prompt, up = encode(backbone, chosen).prompt, encode(backbone, chosen).answer
    sums, _ = score_answers(backbone, [encode(backbone, chosen), encode(backbone, rejected)], None)
    return Preference("e", prompt, up, encode(backbone, rejected).answer, *sums.tolist(), weight, False)


def compute_loss(step: DpoStep, rows: Sequence[Preference]) -> float:
    return sum(part()[0].item() for part in step.make_parts(rows))


def test_a_step_of_light_pairs_moves_less_than_one_of_heavy_pairs() -> None:
    backbone = build_tiny_backbone()
    step = DpoStep(backbone, DpoSection(label_smoothing=0), mean_weight=2.0)
    heavy = compute_loss(step, [make_preference(backbone, 3.0)] * 2)
    light = compute_loss(step, [make_preference(backbone, 1.0)] * 2)
    assert (heavy, light) == pytest.approx((1.5 * math.log(2), 0.5 * math.log(2)), abs=1e-4)


@pytest.mark.parametrize("loss", ["sigmoid", "robust", "aot"])
def test_micro_batches_add_up_to_the_whole_step(loss: str) -> None:
    """Gradients and figures of one batch of six pairs, and of six batches of one, are the same."""
    backbone, rows = build_tiny_backbone(), []
    section = DpoSection(loss=loss)  # type: ignore[arg-type]
    for i, (chosen, rejected) in enumerate([(KIND, GRUFF), ("Go.", KIND), ("It is Paris.", "Go away.")] * 2):
        row = make_preference(backbone, 1.0 + i, chosen, rejected)
        rows.append(dataclasses.replace(row, chosen_reference=row.chosen_reference + 3 * i, is_tie=i == 4))
    gradients, figures = [], []
    for budget in (10_000, 1):
        backbone.token_budget = budget
        with backbone.adapters.training("policy") as parameters:
            parts = DpoStep(backbone, section, mean_weight=2.0).make_parts(rows)
            assert len(parts) == (1 if budget > 1 else 6)
            computed = [part() for part in parts]
            loss_sum = torch.stack([each[0] for each in computed]).sum()
            grads = torch.autograd.grad(loss_sum, parameters)
            gradients.append(torch.cat([g.flatten() for g in grads]))
            sums = [sum(each[1][name] for each in computed) for name in computed[0][1]]
            figures.append([loss_sum.item(), *sums])
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6) and gradients[0].abs().max() > 1e-4
    assert figures[0] == pytest.approx(figures[1], rel=1e-5, abs=1e-4)


def test_the_likelihood_term_holds_a_chosen_answer_that_falls() -> None:
    backbone = build_tiny_backbone()
    row = make_preference(backbone, 1.0)
    fallen = dataclasses.replace(
        row, chosen_reference=row.chosen_reference + 5, rejected_reference=row.rejected_reference + 5
    )
    with_term, without = (
        compute_loss(DpoStep(backbone, DpoSection(nll_weight=weight), 1.0), [fallen]) for weight in (0.2, 0.0)
    )
    nll = -row.chosen_reference / len(row.chosen)
    assert with_term - without == pytest.approx(0.2 * nll, abs=1e-4)
    risen = dataclasses.replace(row, chosen_reference=row.chosen_reference - 5)
    assert compute_loss(DpoStep(backbone, DpoSection(nll_weight=0.2), 1.0), [risen]) == pytest.approx(
        compute_loss(DpoStep(backbone, DpoSection(nll_weight=0.0), 1.0), [risen])
    )


# Order and resume


def test_the_order_follows_from_seed_and_event_ids_not_from_the_list() -> None:
    pairs = [*make_kind_pairs(16), make_pair("x", "Go.", KIND, "second")]
    states = []
    for ordered, seed in ((pairs, 3), (pairs[::-1], 3), (pairs, 4)):
        backbone = build_tiny_backbone()
        run(backbone, ordered, seed=seed)
        states.append(weights_of(backbone))
    assert torch.allclose(states[0], states[1], atol=1e-6)
    assert not torch.allclose(states[0], states[2], atol=1e-6)


def test_a_round_killed_at_any_step_ends_in_the_same_bits_and_figures(tmp_path: Path) -> None:
    pairs = [*make_kind_pairs(16), make_pair("x", "Go.", KIND, "second"), make_pair("t", "Go.", KIND, "tie")]
    backbone = build_tiny_backbone()
    expected = run(backbone, pairs, snapshots=Snapshots(tmp_path / "whole", 2))
    state = weights_of(backbone)
    for killed_at in range(1, int(expected["num_steps"]) + 1):
        snapshots = Snapshots(tmp_path / str(killed_at), 2)
        taken: list[float] = []

        def kill(share: float, _: dict[str, float], taken: list[float] = taken, limit: int = killed_at) -> None:
            taken.append(share)
            if len(taken) == limit:
                raise Killed

        backbone = build_tiny_backbone()
        with pytest.raises(Killed):
            run(backbone, pairs, snapshots=snapshots, progress=kill)
        backbone = build_tiny_backbone()
        assert run(backbone, pairs, snapshots=snapshots) == expected
        assert torch.equal(weights_of(backbone), state)


def test_a_round_that_is_stopped_between_snapshots_loses_no_step(tmp_path: Path) -> None:
    def stop(share: float, _: dict[str, float]) -> None:
        if share > 0.6:
            raise RoundAborted

    backbone, snapshots = build_tiny_backbone(), Snapshots(tmp_path, 100)
    with pytest.raises(RoundAborted):
        run(backbone, make_kind_pairs(16), snapshots=snapshots, progress=stop)
    shares: list[float] = []
    run(backbone, make_kind_pairs(16), snapshots=snapshots, progress=lambda share, _: shares.append(share))
    assert shares == [1.0]


# Rows that cannot be learnt from


class BrokenRow(RuntimeError):
    """What a kernel might raise for one row."""


def break_row(backbone: Backbone, bad: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any batch with the pair's first answer fails in the model, long after it was encoded and referred to."""
    answer = backbone.transcriber.encode_pair(bad).first
    make = backbone.make_batch

    def checked(items: Any) -> Any:
        if torch.is_grad_enabled() and any(answer in answers for _, answers in items):
            raise BrokenRow("no kernel takes this row")
        return make(items)

    monkeypatch.setattr(backbone, "make_batch", checked)


def test_a_row_that_breaks_a_step_goes_alone_and_nothing_is_learnt_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = make_kind_pairs(15)
    bad = make_pair("bad", "Hm, Paris?", GRUFF, "first")
    rejected: list[tuple[str, str, str]] = []
    backbone = build_tiny_backbone()
    break_row(backbone, bad, monkeypatch)
    figures = run(backbone, [*pairs, bad], reject=lambda *row: rejected.append((row[0], row[1], type(row[2]).__name__)))
    assert rejected == [("bad", "dpo", "BrokenRow")]  # once, though every epoch has it
    assert figures["num_steps"] == 4  # a step without it is one step, not its halves
    assert figures["accuracy"] > 0.9


def test_a_round_of_nothing_but_broken_rows_has_nothing_to_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = make_pair("bad", "Hm, Paris?", GRUFF, "first")
    backbone = build_tiny_backbone()
    break_row(backbone, bad, monkeypatch)
    with pytest.raises(NothingToTrainOn):
        run(backbone, [bad], reject=lambda *_: None)


def test_a_pair_without_a_finite_reference_is_rejected() -> None:
    backbone, rejected = build_tiny_backbone(), []
    encoded = encode_all(backbone, make_kind_pairs(4))
    references = refer_to_base(backbone)([a for e in encoded for a in e.answers]).reshape(4, 2)
    references[2, 1] = float("nan")
    figures = run_dpo(
        backbone, encoded, ROUND, references=references, reject=lambda *row: rejected.append((row[0], row[1]))
    )
    assert (rejected, figures["num_pairs"]) == ([("0-2", "dpo")], 3)


def test_a_broken_model_rejects_nobody_and_says_so() -> None:
    backbone = build_tiny_backbone()
    with torch.no_grad():
        next(iter(backbone.adapters.parameters_of("policy").values())).fill_(float("nan"))
    with pytest.raises(NotFinite):
        run(backbone, make_kind_pairs(8), reject=lambda event_id, *_: pytest.fail(f"{event_id} was rejected"))
