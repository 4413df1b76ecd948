"""The engines' command lines."""

import itertools
from pathlib import Path

import pytest

from gateway.sections.serving import GatewaySection
from prefloop.engine_host import RequiredModel
from prefloop.machine import MachineSettings
from prefloop.services import (
    Layout,
    engine_service,
    find_device,
    full_engine_service,
    gateway_service,
    scorer_service,
    sync_service,
    trainer_service,
)
from trainer.model.presets import PRESETS


def read_options(argv: list[str]) -> dict[str, str]:
    """By name; what a flag without a value is followed by is left out."""
    pairs = itertools.pairwise([*argv, "--"])
    return {name: "" if value.startswith("--") else value for name, value in pairs if name.startswith("--")}


def test_a_whole_model_is_served_alone_under_its_checkpoints_id(tmp_path: Path) -> None:
    layout = Layout(tmp_path, engine_args=["--seed", "1"], max_model_len=64)
    wanted = RequiredModel("c-000001-abc", str(tmp_path))
    whole = full_engine_service(layout, wanted, 4321)
    options = read_options(list(whole.argv))
    assert (options["--model"], options["--served-model-name"]) == (wanted.path, wanted.checkpoint)
    assert (options["--host"], options["--port"], options["--max-model-len"]) == ("127.0.0.1", "4321", "64")
    assert "--enable-lora" not in whole.argv and "--seed" in whole.argv
    assert whole.env["HF_HUB_OFFLINE"] == "1" and wanted.checkpoint in whole.name


def test_on_a_cpu_an_engine_is_one_process_and_leaves_a_core_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(9)))
    wanted = RequiredModel("c", str(tmp_path))
    one, two = (
        engine_service(Layout(tmp_path, device="cpu")),
        full_engine_service(Layout(tmp_path, device="cpu"), wanted, 1),
    )
    for service, threads in ((one, "8"), (two, "4")):
        assert service.env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        assert service.env["OMP_NUM_THREADS"] == threads
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})
    assert engine_service(Layout(tmp_path, device="cpu")).env["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert engine_service(Layout(tmp_path, device="cpu")).env["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in engine_service(Layout(tmp_path, device="cuda")).env
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in engine_service(Layout(tmp_path, device="cuda")).env


def test_both_kinds_of_engines_compute_alike(tmp_path: Path) -> None:
    """The probe of either compares log-probabilities in float32."""
    layout = Layout(tmp_path, model=str(tmp_path))
    adapters = read_options(list(engine_service(layout).argv))
    whole = read_options(list(full_engine_service(layout, RequiredModel("c", str(tmp_path)), 1).argv))
    own = {
        "--model",
        "--served-model-name",
        "--port",
        "--enable-lora",
        "--max-lora-rank",
        "--max-loras",
        "--max-cpu-loras",
    }
    assert {k: v for k, v in adapters.items() if k not in own} == {k: v for k, v in whole.items() if k not in own}
    assert "--enable-lora" in engine_service(layout).argv


def test_float32_and_eager_are_for_the_cpu_alone(tmp_path: Path) -> None:
    cpu = engine_service(Layout(tmp_path, device="cpu")).argv
    cuda = engine_service(Layout(tmp_path, device="cuda")).argv
    assert read_options(list(cpu))["--dtype"] == "float32" and "--enforce-eager" in cpu
    assert {"--dtype", "--enforce-eager", "--max-num-seqs"} & set(cuda) == set()
    assert "--enable-lora" in cuda and read_options(list(cuda))["--scheduling-policy"] == "priority"


def test_a_gpu_is_found_by_its_driver_unless_it_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_device(tmp_path / "nvidiactl") == "cpu"
    (tmp_path / "nvidiactl").touch()
    assert find_device(tmp_path / "nvidiactl") == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_device(tmp_path / "nvidiactl") == "cpu"


def test_the_trainer_reads_no_longer_rows_than_the_engine(tmp_path: Path) -> None:
    assert trainer_service(Layout(tmp_path, max_model_len=512)).env["PREFLOOP_TRAINER__MODEL__MAX_TOKENS"] == "512"
    assert "PREFLOOP_TRAINER__MODEL__MAX_TOKENS" not in trainer_service(Layout(tmp_path)).env


def test_the_engine_takes_adapters_of_the_trainers_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_max_rank(rank: int) -> str:
        return read_options(list(engine_service(Layout(tmp_path, lora_rank=rank)).argv))["--max-lora-rank"]

    assert [find_max_rank(rank) for rank in (1, 8, 16, 320, 512)] == ["8", "8", "16", "320", "512"]
    with pytest.raises(ValueError, match="up to rank 512"):
        find_max_rank(513)
    monkeypatch.setenv("PREFLOOP_CONFIG", str(tmp_path / "prefloop.toml"))
    (tmp_path / "prefloop.toml").write_text("[trainer.model]\nlora_rank = 64\n")
    assert MachineSettings().lora_rank == 64
    (tmp_path / "prefloop.toml").write_text("")
    assert {preset.lora_rank for preset in PRESETS.values()} == {MachineSettings().lora_rank} == {16}


def test_engine_and_trainer_share_a_gpu_by_one_setting(tmp_path: Path) -> None:
    def read(device: str, share: float) -> dict[str, str]:
        return read_options(list(engine_service(Layout(tmp_path, device=device, gpu_share=share)).argv))

    assert read("cuda", 0.4)["--gpu-memory-utilization"] == "0.4"
    assert "--gpu-memory-utilization" not in read("cuda", 0.0) | read("cpu", 0.4)


def test_the_probes_tolerance_follows_what_the_engine_computes_in(tmp_path: Path) -> None:
    def find_dtype(device: str, *args: str, url: str = "") -> str | None:
        layout = Layout(tmp_path, device=device, engine_args=args, engine_url=url)
        return gateway_service(layout).env.get("PREFLOOP_GATEWAY__ENGINE_DTYPE")

    assert (find_dtype("cpu"), find_dtype("cuda")) == ("float32", "bfloat16")
    assert find_dtype("cuda", "--dtype", "half") == "float16" and find_dtype("cuda", "--dtype=float32") == "float32"
    assert find_dtype("cuda", "--dtype", "auto") == "bfloat16" and find_dtype("cuda", url="http://engine") is None
    assert GatewaySection(engine_dtype="float32").max_probe_difference == 0.001
    assert GatewaySection(engine_dtype="bfloat16").max_probe_difference == 0.2
    assert GatewaySection(engine_dtype="bfloat16", probe_tolerance=0.05).max_probe_difference == 0.05


def test_a_checkpoint_is_judged_by_answers_of_the_engine_that_sees_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "PREFLOOP_TRAINER__SAMPLING__ENGINES"
    monkeypatch.delenv(name, raising=False)
    assert trainer_service(Layout(tmp_path, port=7000)).env[name] == '["http://127.0.0.1:7001"]'
    assert name not in trainer_service(Layout(tmp_path, engine_url="http://gpu:8000")).env
    monkeypatch.setenv(name, "[]")
    assert name not in trainer_service(Layout(tmp_path)).env


def test_a_scorer_runs_and_the_gateway_knows_it_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFLOOP_GATEWAY__SCORER_URL", raising=False)
    layout = Layout(tmp_path, port=7000, max_model_len=512, has_scorer=True)
    assert gateway_service(layout).env["PREFLOOP_GATEWAY__SCORER_URL"] == "http://127.0.0.1:7003"
    assert "PREFLOOP_GATEWAY__SCORER_URL" not in gateway_service(Layout(tmp_path, port=7000)).env
    scorer = scorer_service(layout, {"PREFLOOP_TRAINER__SEED": "3"})
    assert scorer.argv[1:] == ["-m", "trainer.scorer"]
    assert scorer.env["PREFLOOP_TRAINER__SCORER__PORT"] == "7003"
    assert scorer.env["PREFLOOP_TRAINER__MODEL__MAX_TOKENS"] == "512"
    assert scorer.env["PREFLOOP_TRAINER__SEED"] == "3"
    assert not MachineSettings().has_scorer
    monkeypatch.setenv("PREFLOOP_TRAINER__SCORER__ENABLED", "true")
    assert MachineSettings().has_scorer


def test_with_a_store_checkpoints_are_fetched_where_the_engine_is_told_to_look(tmp_path: Path) -> None:
    layout, name = Layout(tmp_path, port=7000, has_store=True), "PREFLOOP_GATEWAY__ENGINE_CHECKPOINTS_DIR"
    fetched = sync_service(layout).env["PREFLOOP_SYNC__DIRECTORY"]
    assert gateway_service(layout).env[name] == fetched == str(tmp_path / "engine-checkpoints")
    assert sync_service(layout).env["PREFLOOP_SYNC__PORT"] == "7004"
    assert name not in gateway_service(Layout(tmp_path)).env
    elsewhere = Layout(tmp_path, has_store=True, engine_url="http://gpu:8000")  # fetched by whoever runs that engine
    assert not elsewhere.has_sync and name not in gateway_service(elsewhere).env
