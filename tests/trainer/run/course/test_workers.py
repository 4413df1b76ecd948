"""A round in two processes, or on two nodes, gives what one gives: the same losses and the same adapter."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from accelerate.commands.launch import launch_command_parser

from prefloop.servers.ports import find_port
from tests.trainer.learn.pairs import encode_all, make_kind_pairs, refer_to_base
from tests.trainer.tiny import SIZE, build_tiny_tokenizer
from tests.trainer.workbench import Workbench
from trainer.learn import loop
from trainer.learn.dpo import blame_row, make_preferences, train_preferences
from trainer.learn.dpo_step import Preference
from trainer.learn.isolation import RoundAborted
from trainer.learn.loop import Loop, ParameterGroup, Snapshots, SnapshotsDiffer
from trainer.learn.worker import Job
from trainer.model.backbone import Backbone
from trainer.run.course.nodes import Nodes, NodesMissing, read_launch
from trainer.run.course.workers import WorkersFailed, build_command, train_in_processes
from trainer.run.rounds import find_round
from trainer.sections.model import ModelSection
from trainer.sections.training import DpoSection
from trainer.seed import build_model
from trainer.text.rejected import log_rejected

SECTION = DpoSection(lr=3e-3, epochs=1, batch_size=6)
MODEL = {"dtype": "float32", "preset": "fsdp", "token_budget": 128}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("base")
    tokenizer = build_tiny_tokenizer()
    build_model(SIZE, tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load(base: Path, seed: int) -> Backbone:
    return Backbone.load(base, ModelSection.model_validate(MODEL), seed=seed, device="cpu")


def prepare(backbone: Backbone, number: int = 20) -> list[Preference]:
    pairs = make_kind_pairs(number)
    return make_preferences(
        encode_all(backbone, pairs),
        refer_to_base(backbone),
        [1.0 + 0.1 * (i % 7) for i in range(number)],
        blame_row(backbone, log_rejected),
    )


def make_job(base: Path, directory: Path, preferences: list[Preference]) -> Job:
    return Job(
        kind="dpo",
        base=str(base),
        device="cpu",
        model=MODEL,
        section=SECTION.model_dump(),
        seed=5,
        torch_threads=1,
        snapshots=str(directory / "snapshots"),
        snapshot_every=2,
        preferences=preferences,
    )


def weights_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    return backbone.adapters.state("policy")


def test_two_processes_that_split_the_base_train_as_one_does_even_if_they_are_stopped_and_start_again(
    base: Path, tmp_path: Path
) -> None:
    backbone = load(base, seed=3)
    preferences = prepare(backbone)
    start = weights_of(backbone)
    one: list[dict[str, float]] = []
    expected = train_preferences(
        backbone, preferences, SECTION, seed=5, progress=lambda share, figures: one.append({"share": share, **figures})
    )
    trained = weights_of(backbone)
    backbone.adapters.restore("policy", start)
    seen: list[dict[str, float]] = []

    def progress(share: float, figures: Any) -> None:
        seen.append({"share": share, **figures})
        if len(seen) == 3:
            raise RoundAborted

    def run() -> dict[str, float]:
        return train_in_processes(
            make_job(base, tmp_path, preferences),
            tmp_path / "workers",
            2,
            save_start=lambda directory: backbone.adapters.save("policy", directory),
            load_trained=lambda directory: backbone.adapters.load("policy", directory),
            progress=progress,
            check_stopping=lambda: None,
            reject=log_rejected,
        )

    with pytest.raises(RoundAborted):
        run()
    assert Snapshots(tmp_path / "snapshots", 2).path.exists()
    metrics = run()
    by_share = {round(row["share"], 6): row for row in one}
    # The last step may be done before the stop is heard: then it is not told again.
    assert len({row["share"] for row in seen}) >= 3
    for row in seen:  # a step that was repeated is the same again
        for name, value in row.items():
            assert by_share[round(row["share"], 6)][name] == pytest.approx(value, abs=1e-5), name
    assert metrics["loss"] == pytest.approx(expected["loss"], abs=1e-5) and metrics["num_processes"] == 2
    assert 0.5 < metrics["held_share"] < 0.75  # half of the layers, and the whole embeddings
    found = weights_of(backbone)
    assert max((found[name] - start[name]).abs().max().item() for name in found) > 1e-3
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, trained[name], atol=1e-5, rtol=0)


def start_node(state_dir: Path) -> subprocess.Popen[bytes]:
    """Another machine, but for the machine."""
    env = {**os.environ, "PREFLOOP_STATE_DIR": str(state_dir)}
    with (state_dir / "node.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "trainer.node"], env=env, stdout=log, stderr=log)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """As a machine that is gone: nothing of it says good-bye."""
    family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    for pid in family:
        os.kill(pid, signal.SIGKILL)
    process.wait()


def test_two_nodes_train_as_one_process_does_and_go_on_when_a_node_that_was_killed_is_back(
    base: Path, tmp_path: Path
) -> None:
    backbone = load(base, seed=3)
    preferences = prepare(backbone)
    start = weights_of(backbone)
    expected = train_preferences(backbone, preferences, SECTION, seed=5)
    trained = weights_of(backbone)
    backbone.adapters.restore("policy", start)
    rounds = tmp_path / "rounds"
    directory = rounds / "r-000001" / "workers"
    job = msgspec.structs.replace(make_job(base, tmp_path, preferences), snapshots="../snapshots", snapshot_every=1)
    nodes = [start_node(tmp_path)]
    seen: list[float] = []

    def progress(share: float, figures: Any) -> None:
        seen.append(share)
        if len(seen) == 2:
            kill_tree(nodes[0])
            nodes.append(start_node(tmp_path))

    try:
        metrics = train_in_processes(
            job,
            directory,
            1,
            Nodes(2, f"127.0.0.1:{find_port()}", rounds, 300.0),
            save_start=lambda out: backbone.adapters.save("policy", out),
            load_trained=lambda out: backbone.adapters.load("policy", out),
            progress=progress,
            check_stopping=lambda: None,
            reject=log_rejected,
        )
    finally:
        for node in nodes:
            if node.poll() is None:
                kill_tree(node)
    assert len(nodes) == 2 and metrics["num_processes"] == 2
    assert metrics["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert 0.5 < metrics["held_share"] < 0.75
    for name, tensor in weights_of(backbone).items():
        torch.testing.assert_close(tensor, trained[name], atol=1e-5, rtol=0)
    assert read_launch(rounds) is None


def test_a_round_whose_nodes_did_not_come_stays_open_and_goes_on_when_they_are_there(bench: Workbench) -> None:
    learner = bench.start()
    bench.send(44)
    bench.error = NodesMissing("not all of 2 nodes came within 600 s")
    for _ in range(5):  # more often than a trainer may die in a round
        with pytest.raises(NodesMissing):
            bench.run_all(learner)
    assert bench.finished() == []
    bench.error = None
    bench.run_all(learner)
    [row] = bench.finished()
    assert row["outcome"] == "published" and all(rows == bench.trained[0] for rows in bench.trained)
    with bench.database.connect() as connection:
        found = find_round(connection, 1)
    assert found is not None and found["attempts"] == 1


def test_nodes_that_do_not_come_are_said_to_be_missing(base: Path, tmp_path: Path) -> None:
    directory = tmp_path / "rounds" / "r-000001" / "workers"
    with pytest.raises(NodesMissing, match="not all of 2 nodes came within 3 s"):
        train_in_processes(
            make_job(base, tmp_path, []),
            directory,
            1,
            Nodes(2, f"127.0.0.1:{find_port()}", tmp_path / "rounds", 3.0),
            save_start=lambda out: out.mkdir(),
            load_trained=lambda out: None,
            progress=lambda share, figures: None,
            check_stopping=lambda: None,
            reject=log_rejected,
        )


def test_a_trainer_that_is_to_stop_waits_for_no_node_and_takes_its_launch_back(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rounds"
    began = time.monotonic()

    def stop_once_launched() -> None:
        if read_launch(folder) is not None and (folder / "r-000001" / "workers" / "workers.log").exists():
            raise RoundAborted

    with pytest.raises(RoundAborted):
        train_in_processes(
            make_job(base, tmp_path, []),
            folder / "r-000001" / "workers",
            1,
            Nodes(2, f"127.0.0.1:{find_port()}", folder, 600.0),
            save_start=lambda out: out.mkdir(),
            load_trained=lambda out: None,
            progress=lambda share, figures: None,
            check_stopping=stop_once_launched,
            reject=log_rejected,
        )
    assert read_launch(folder) is None and time.monotonic() - began < 60


def test_nodes_begin_again_where_they_read_different_snapshots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A directory over a network shows a new file to one machine before it shows it to another."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    groups = [ParameterGroup("policy", {"x": parameter}, 1e-3)]
    ahead = Loop(groups, None)
    ahead.step_number = 4
    Snapshots(tmp_path, 2).save(ahead)
    monkeypatch.setattr(loop, "count_processes", lambda: 2)
    monkeypatch.setattr(loop, "take_least", lambda value, device: min(value, 2))
    with pytest.raises(SnapshotsDiffer, match="of step 4, another an older one"):
        Snapshots(tmp_path, 2).restore(Loop(groups, None))


def test_an_error_of_one_process_ends_all_and_says_why(base: Path, tmp_path: Path) -> None:
    backbone = load(base, seed=3)
    bad = [dataclasses.replace(prepare(backbone, 2)[0], chosen=(99_999,))] * 2
    with pytest.raises(WorkersFailed, match=r"process [01]: IndexError"):
        train_in_processes(
            make_job(base, tmp_path, bad),
            tmp_path / "workers",
            2,
            save_start=lambda directory: backbone.adapters.save("policy", directory),
            load_trained=lambda directory: None,
            progress=lambda share, figures: None,
            check_stopping=lambda: None,
            reject=log_rejected,
        )


def test_gpus_are_launched_by_accelerate() -> None:
    command = build_command(Path("job"), "cuda", 4)
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    read = launch_command_parser().parse_args(command[3:])
    assert (read.multi_gpu, read.num_processes, read.num_machines, read.main_process_port) == (True, 4, 1, 0)
    assert (read.module, read.training_script, read.training_script_args) == (True, "trainer.learn.worker", ["job"])
