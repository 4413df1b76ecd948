"""Steps add up, fail without a trace, and go on after a kill as if nothing had happened."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing, nn

from trainer.learn.isolation import NotFinite
from trainer.learn.loop import Loop, ParameterGroup, Schedule, Snapshots, deal_parts

ROWS = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
TARGETS = torch.randn(8, generator=torch.Generator().manual_seed(2))


class Killed(BaseException):
    """What ends the process between two steps."""


def make(snapshots: Snapshots | None = None, clip: float = 1.0) -> tuple[Loop, nn.Linear]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    groups = [
        ParameterGroup("weight", {"w": model.weight}, 0.05),
        ParameterGroup("bias", {"b": model.bias}),
    ]
    return Loop(groups, Schedule(0.1, 6, decay="cosine"), clip=clip, snapshots=snapshots), model


def part(model: nn.Linear, chosen: slice, noise: float = 0.0) -> tuple[Tensor, dict[str, float]]:
    rows = ROWS[chosen] + noise * torch.randn(ROWS[chosen].shape)
    loss = ((model(rows).squeeze(1) - TARGETS[chosen]) ** 2).sum() / len(ROWS)
    return loss, {"num_rows": float(len(rows))}


def test_micro_batches_add_up_to_one_batch() -> None:
    together, one = make()
    apart, other = make()
    for _ in range(4):
        figures = together.step([lambda: part(one, slice(0, 8))])
        split = apart.step([lambda s=s: part(other, s) for s in (slice(0, 1), slice(1, 6), slice(6, 8))])  # type: ignore[misc]
        assert split == pytest.approx(figures, abs=1e-6)
    assert figures["num_rows"] == 8
    torch.testing.assert_close(one.weight, other.weight, atol=1e-6, rtol=0)
    assert (together.step_number, apart.step_number) == (4, 4)


def test_the_rate_warms_up_then_decays() -> None:
    linear = Schedule(1.0, 20, warmup_share=0.1)
    assert [linear.scale(step) for step in (0, 1, 2, 11, 20, 25)] == pytest.approx([0.5, 1, 1, 0.5, 0, 0])
    cosine = Schedule(1.0, 20, warmup_share=0.1, decay="cosine")
    assert [cosine.scale(step) for step in (1, 2, 11, 20)] == pytest.approx([1, 1, 0.5, 0])
    assert Schedule(1.0, 20, warmup_share=0, decay="none").scale(50) == 1


def test_each_group_has_its_own_rate_or_the_schedules() -> None:
    loop, model = make()
    before = model.weight.detach().clone(), model.bias.detach().clone()
    assert loop.step([lambda: part(model, slice(0, 8))])["lr"] == pytest.approx(0.05)
    moved = (model.weight - before[0]).abs().max(), (model.bias - before[1]).abs().max()
    assert [m.item() for m in moved] == pytest.approx([0.05, 0.1], rel=1e-3)  # Adam's first step is its rate
    with pytest.raises(ValueError, match="no learning rate"):
        Loop([ParameterGroup("g", {"b": model.bias})], None)


def test_gradients_are_clipped_to_their_norm() -> None:
    model = nn.Linear(2, 1, bias=False)
    seen: list[float] = []
    loop = Loop([ParameterGroup("g", {"w": model.weight}, 0.0)], None, clip=0.5)
    loop._optimizer.register_step_pre_hook(lambda *_: seen.append(float(model.weight.grad.norm())))  # type: ignore[union-attr]
    assert loop.step([lambda: ((model.weight * torch.tensor([[3.0, 4.0]])).sum(), {})])["grad_norm"] == pytest.approx(5)
    assert seen == pytest.approx([0.5], rel=1e-4)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(factor: float) -> None:
    loop, model = make()
    loop.step([lambda: part(model, slice(0, 8))])
    before = loop.state()
    with pytest.raises(NotFinite):
        loop.step([lambda: part(model, slice(0, 4)), lambda: (part(model, slice(4, 8))[0] * factor, {})])
    assert all(torch.equal(tensor, before[name]) for name, tensor in loop.state().items())
    assert loop.step_number == 1 and model.weight.grad is None


def test_a_step_whose_figures_are_refused_leaves_all_as_it_was() -> None:
    loop, model = make()
    loop.step([lambda: part(model, slice(0, 8))])
    before, generator = loop.state(), torch.get_rng_state()
    figures = loop.step([lambda: part(model, slice(0, 8), noise=1.0)], lambda figures: figures["num_rows"] < 8)
    assert figures["lr"] == 0 and figures["grad_norm"] > 0 and loop.step_number == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in loop.state().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert loop.step([lambda: part(model, slice(0, 8))], lambda figures: figures["num_rows"] == 8)["lr"] > 0


def run(directory: Path, every: int, kill_after: int | None = None) -> tuple[dict[str, Tensor], list[float]]:
    """Six steps with noise from torch's generator, from the snapshot if there is one."""
    snapshots = Snapshots(directory, every)
    loop, model = make(snapshots)
    snapshots.restore(loop)
    while loop.step_number < 6:
        if loop.step_number == kill_after:
            raise Killed
        loss = loop.step([lambda: part(model, slice(0, 8), noise=0.3)])["loss"]
        loop.memo["losses"] = [*loop.memo.get("losses", []), loss]
    return loop.state(), loop.memo["losses"]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kill_after", range(6))
def test_a_run_killed_between_any_two_steps_ends_in_the_same_bits(tmp_path: Path, kill_after: int, every: int) -> None:
    whole, _ = run(tmp_path / "whole", every)
    with pytest.raises(Killed):
        run(tmp_path / "killed", every, kill_after)
    torch.manual_seed(12345)
    resumed, _ = run(tmp_path / "killed", every)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())


def test_a_snapshot_that_does_not_fit_is_left_alone(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, 1)
    loop, model = make(snapshots)
    assert not snapshots.restore(loop)
    loop.step([lambda: part(model, slice(0, 8))])
    other = Loop([ParameterGroup("other", {"w": nn.Parameter(torch.zeros(3))}, 0.1)], None)
    assert not snapshots.restore(other)
    assert snapshots.restore(make()[0])
    snapshots.path.write_bytes(snapshots.path.read_bytes()[:40])
    assert not snapshots.restore(loop)
    assert loop.step_number == 1


def share_steps(rank: int, port: int, out: str) -> None:
    """One of two processes that take the same steps, each with its own micro-batches."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    loop, model = make()
    chosen = (slice(0, 3), slice(3, 8))[rank]
    losses = [loop.step([lambda: part(model, chosen)])["loss"] for _ in range(4)]
    torch.save({"losses": torch.tensor(losses), "weight": model.weight.detach()}, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    import socket

    loop, model = make()
    losses = [loop.step([lambda: part(model, slice(0, 8))])["loss"] for _ in range(4)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(share_steps, (port, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["losses"].tolist() == pytest.approx(losses, abs=1e-5)
        torch.testing.assert_close(found["weight"], model.weight.detach(), atol=1e-5, rtol=0)


def test_a_process_without_a_micro_batch_computes_one_that_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = make()
    parts = [lambda s=s: part(model, s) for s in (slice(0, 3), slice(3, 6), slice(6, 8))]  # type: ignore[misc]
    assert deal_parts(parts) == parts
    monkeypatch.setattr("trainer.learn.loop.count_processes", lambda: 2)
    dealt = []
    for rank in (0, 1):
        monkeypatch.setattr("trainer.learn.loop.find_rank", lambda rank=rank: rank)
        dealt.append(deal_parts(parts))
    assert dealt[0] == [parts[0], parts[2]] and dealt[1][0] is parts[1]
    loss, figures = dealt[1][1]()
    assert loss.item() == 0 and figures == {"num_rows": 0.0}
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None and not model.weight.grad.any()
