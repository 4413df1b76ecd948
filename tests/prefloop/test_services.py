"""The engines' command lines."""

import itertools
from pathlib import Path

from prefloop.engine_host import RequiredModel
from prefloop.services import Layout, engine_service, full_engine_service


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
    assert whole.env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert whole.env["HF_HUB_OFFLINE"] == "1" and wanted.checkpoint in whole.name


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
