"""The command lines and environments of engine, gateway, trainer and scorer on one machine.

One place that knows the ports. Every process gets its settings through the environment, over what `prefloop.toml` says.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from feedback.secret_files import read_admin_key
from prefloop.engine_host import EngineHost, RequiredModel
from prefloop.supervisor import Service, Supervisor

MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank may be
SCORER = "PREFLOOP_GATEWAY__SCORER_URL"
SAMPLING = "PREFLOOP_TRAINER__SAMPLING__ENGINES"
DEFAULT_RANK = 16  # of the trainer's adapters where trainer.model.lora_rank is not set


@dataclass(frozen=True)
class Layout:
    """Where one machine's prefloop lives. engine_url: an engine that already runs, else one is started.

    log_url and the database URLs: empty for the embedded ones. device: "cpu", "cuda" or "" for what the machine has.
    lora_rank: of the trainer's adapters; gpu_share: of a GPU's memory for the engine, 0 for vLLM's own choice. has_scorer: a
    process says which answers to ask about. has_store: checkpoints are kept in a store, and fetched beside the engine.
    """

    state_dir: Path
    port: int = 8800
    model: str = ""
    engine_url: str = ""
    preset: str = "default"
    max_model_len: int | None = None
    engine_args: Sequence[str] = ()
    log_url: str = ""
    gateway_database: str = ""
    trainer_database: str = ""
    device: str = ""
    lora_rank: int = DEFAULT_RANK
    gpu_share: float = 0.0
    has_scorer: bool = False
    has_store: bool = False

    @property
    def has_sync(self) -> bool:
        """Whether checkpoints are fetched here: beside an engine elsewhere, whoever runs it does that."""
        return self.has_store and not self.engine_url

    @property
    def fetched_dir(self) -> Path:
        """Where fetched checkpoints lie."""
        return self.state_dir / "engine-checkpoints"

    @property
    def engine_dtype(self) -> str:
        """What the engine computes in: float32 on a CPU, where it costs nothing and makes the probe of an adapter exact."""
        asked = [b for a, b in pairwise(self.engine_args) if a == "--dtype"]
        asked += [a.removeprefix("--dtype=") for a in self.engine_args if a.startswith("--dtype=")]
        if asked and asked[-1] != "auto":
            return {"float": "float32", "half": "float16"}.get(asked[-1], asked[-1])
        return "float32" if self.is_on_cpu else "bfloat16"

    @property
    def is_on_cpu(self) -> bool:
        """Whether the engine computes on the CPU."""
        return (self.device or find_device()) == "cpu"

    @property
    def gateway_url(self) -> str:
        """Where apps and operators reach the gateway."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine_address(self) -> str:
        """Where the gateway reaches the engine."""
        return self.engine_url or f"http://127.0.0.1:{self.port + 1}"

    @property
    def trainer_url(self) -> str:
        """Where the trainer says what it does."""
        return f"http://127.0.0.1:{self.port + 2}"

    @property
    def scorer_url(self) -> str:
        """Where the gateway reaches the scorer, if there is one."""
        return f"http://127.0.0.1:{self.port + 3}"

    @property
    def model_path(self) -> str:
        """The base weights: as asked for, else the seed policy."""
        return self.model or str(self.state_dir / "seed")

    def environment(self) -> dict[str, str]:
        """Settings that all processes share."""
        urls = {
            "PREFLOOP_LOG_URL": self.log_url,
            "PREFLOOP_GATEWAY__DATABASE_URL": self.gateway_database,
            "PREFLOOP_TRAINER__DATABASE_URL": self.trainer_database,
        }
        return {
            "PREFLOOP_STATE_DIR": str(self.state_dir),
            "PREFLOOP_BASE_MODEL": self.model_path,
            "PREFLOOP_PRESET": self.preset,
            "PYTHONUNBUFFERED": "1",
            **{name: url for name, url in urls.items() if url},
        }


def choose_max_lora_rank(rank: int) -> int:
    """The least --max-lora-rank that takes adapters of a rank. Raises ValueError above what vLLM knows."""
    fitting = [known for known in MAX_LORA_RANKS if known >= rank]
    if not fitting:
        raise ValueError(f"vLLM takes adapters up to rank {MAX_LORA_RANKS[-1]}, not {rank}")
    return fitting[0]


def log_path(layout: Layout, name: str) -> Path:
    """Where a service's output goes."""
    return layout.state_dir / "logs" / f"{name}.log"


def engine_service(layout: Layout) -> Service:
    """vLLM with runtime LoRA."""
    argv = _serve_model(layout, layout.model_path, "base", layout.port + 1)
    argv += [
        "--enable-lora",
        "--max-lora-rank",
        str(choose_max_lora_rank(layout.lora_rank)),
        "--max-loras",
        "4",
        "--max-cpu-loras",
        "8",
    ]
    env = _engine_environment(layout, layout.model_path) | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    return Service("engine", [*argv, *layout.engine_args], log_path(layout, "engine"), env)


def full_engine_service(layout: Layout, model: RequiredModel, port: int, host: str = "127.0.0.1") -> Service:
    """vLLM with a checkpoint's whole weights, under the checkpoint's id, listening on an address."""
    argv = _serve_model(layout, model.path, model.checkpoint, port, host)
    name = f"engine {model.checkpoint}"
    log = log_path(layout, f"engine-{model.checkpoint}")
    # It starts beside another engine, and serves beside it until that one ends.
    return Service(name, [*argv, *layout.engine_args], log, _engine_environment(layout, model.path, num_engines=2))


def _serve_model(layout: Layout, model: str, name: str, port: int, host: str = "127.0.0.1") -> list[str]:
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", model, "--served-model-name", name, "--host", host, "--port", str(port)]
    argv += ["--scheduling-policy", "priority", "--logprobs-mode", "processed_logprobs"]
    argv += ["--disable-uvicorn-access-log"]
    if layout.is_on_cpu:
        argv += ["--enforce-eager", "--dtype", "float32", "--max-num-seqs", "64"]
    elif layout.gpu_share:
        argv += ["--gpu-memory-utilization", f"{layout.gpu_share:g}"]
    if layout.max_model_len:
        argv += ["--max-model-len", str(layout.max_model_len)]
    return argv


def find_device(nvidia: Path = Path("/dev/nvidiactl")) -> str:
    """ "cuda" if the machine's NVIDIA driver is at work and the user has not hidden its GPUs, else "cpu"."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return "cuda" if nvidia.exists() and not is_hidden else "cpu"


def _engine_environment(layout: Layout, model: str, num_engines: int = 1) -> dict[str, str]:
    """num_engines: that share the machine's cores. What the user's environment says of a CPU wins."""
    env = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if layout.is_on_cpu:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        chosen = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            # vLLM's scheduler waits for its worker process by spinning: of two cores the trainer had half of one. So both are
            # one process, whose threads are bound to no core, and one core is left to everything else.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": str(max(1, (cores - 1) // num_engines)),
        }
        env |= {name: os.environ.get(name, value) for name, value in chosen.items()}
    if Path(model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    return env


def engine_host(layout: Layout, supervisor: Supervisor) -> EngineHost:
    """What starts and ends engines for whole models."""
    return EngineHost(
        layout.gateway_url,
        lambda: read_admin_key(layout.state_dir),
        supervisor,
        lambda model, port: full_engine_service(layout, model, port),
    )


def gateway_service(layout: Layout, extra: dict[str, str] | None = None) -> Service:
    """The gateway; extra: further settings, as environment variables."""
    env = layout.environment() | {
        "PREFLOOP_GATEWAY__PORT": str(layout.port),
        "PREFLOOP_GATEWAY__ENGINES": f'["{layout.engine_address}"]',
        "PREFLOOP_GATEWAY__TRAINER_URL": layout.trainer_url,
    }
    if layout.has_scorer and SCORER not in os.environ:
        env[SCORER] = layout.scorer_url
    if not layout.engine_url:  # else only who runs the engine knows
        env["PREFLOOP_GATEWAY__ENGINE_DTYPE"] = layout.engine_dtype
    if layout.has_sync:
        env["PREFLOOP_GATEWAY__ENGINE_CHECKPOINTS_DIR"] = str(layout.fetched_dir.resolve())
    return Service("gateway", [sys.executable, "-m", "gateway.app"], log_path(layout, "gateway"), env | (extra or {}))


def trainer_service(layout: Layout, extra: dict[str, str] | None = None) -> Service:
    """The trainer; extra: further settings, as environment variables."""
    env = layout.environment() | {
        "PREFLOOP_TRAINER__PORT": str(layout.port + 2),
        "PREFLOOP_TRAINER__GATEWAY_URL": layout.gateway_url,
    }
    env |= _limit_tokens(layout)
    if not layout.engine_url and SAMPLING not in os.environ:  # an engine elsewhere does not see the trainer's files
        env[SAMPLING] = f'["{layout.engine_address}"]'
    return Service("trainer", [sys.executable, "-m", "trainer.main"], log_path(layout, "trainer"), env | (extra or {}))


def scorer_service(layout: Layout, extra: dict[str, str] | None = None) -> Service:
    """The scorer; extra: the trainer's further settings, as environment variables."""
    env = layout.environment() | {"PREFLOOP_TRAINER__SCORER__PORT": str(layout.port + 3)} | _limit_tokens(layout)
    return Service("scorer", [sys.executable, "-m", "trainer.scorer"], log_path(layout, "scorer"), env | (extra or {}))


def sync_service(layout: Layout) -> Service:
    """What fetches checkpoints from the store beside the engine."""
    env = layout.environment() | {
        "PREFLOOP_SYNC__DIRECTORY": str(layout.fetched_dir.resolve()),
        "PREFLOOP_SYNC__GATEWAY_URL": layout.gateway_url,
        "PREFLOOP_SYNC__PORT": str(layout.port + 4),
    }
    return Service("sync", [sys.executable, "-m", "prefloop.cli", "sync"], log_path(layout, "sync"), env)


def _limit_tokens(layout: Layout) -> dict[str, str]:
    """The trainer's context length: the engine's, where that was asked for."""
    return {"PREFLOOP_TRAINER__MODEL__MAX_TOKENS": str(layout.max_model_len)} if layout.max_model_len else {}
