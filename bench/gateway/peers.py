"""How each peer is started in front of the mock: the command line, the settings, what a client must send.

Each runs as its authors would have it in production with one worker (the Rust router: its own threads), logs no
requests, and is asked for the same model by the same bytes. The gateway runs with every feature on: a key with
limits, two arms, metrics, recording of completions.
"""

import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.gateway.checkpoints import make_key, serve_two_arms
from bench.gateway.servers import Server
from bench.gateway.tools import LITELLM, ROUTER, install_python
from feedback.secret_files import read_admin_key
from prefloop.servers.ports import find_port

MODEL = "default"
DIRECT, ROUTER_PEER, RAW, LITELLM_PEER = "mock alone", "rust router", "raw proxy", "litellm"
GATEWAY, AGAIN = "gateway", "gateway again"
_START_S = 180.0
_CANARY_STEPS = '[{"weight": 0.25}]'
_ENOUGH = 10**9  # never reached, always counted
LIMITS = {
    "requests_per_minute": _ENOUGH,
    "requests_per_day": 1000 * _ENOUGH,
    "tokens_per_minute": 1000 * _ENOUGH,
    "tokens_per_day": 1000 * _ENOUGH,
    "budget_per_minute": _ENOUGH,
    "budget_per_day": _ENOUGH,
}


@dataclass(frozen=True)
class Peer:
    """A server to be measured; `headers` ("name: value") are what its clients must send."""

    name: str
    server: Server
    headers: tuple[str, ...] = ()


class Field:
    """The mock and the peers in front of it. `folder` keeps tools between runs, `run_folder` what one run writes."""

    def __init__(self, folder: Path, run_folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._run_folder = run_folder
        self._stack = stack
        self.mock = self._start(DIRECT, lambda port: [str(folder / "mock"), str(port)], "/health")

    def start_mock(self) -> Peer:
        """The mock itself, the ceiling of everything."""
        return Peer(DIRECT, self.mock)

    def start_router(self) -> Peer:
        """vLLM's own router in Rust; it works its engines in turn."""
        python = install_python(ROUTER, self._folder) / "python"

        def command(port: int) -> list[str]:
            argv = [str(python), "-m", "vllm_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
            argv += ["--worker-urls", self.mock.url, "--policy", "round_robin", "--log-level", "warning"]
            return [*argv, "--prometheus-host", "127.0.0.1", "--prometheus-port", str(find_port())]

        return Peer(ROUTER_PEER, self._start(ROUTER_PEER, command, "/health"))

    def start_raw_proxy(self) -> Peer:
        """raw_proxy.py under uvicorn."""

        def command(port: int) -> list[str]:
            argv = [sys.executable, "-m", "uvicorn", "bench.gateway.raw_proxy:app", "--port", str(port)]
            return [*argv, "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]

        return Peer(RAW, self._start(RAW, command, "/health", {"ENGINE_URL": self.mock.url}))

    def start_litellm(self) -> Peer:
        """LiteLLM's proxy, one worker, one key, one model; it may not fetch its price list."""
        program = install_python(LITELLM, self._folder) / "litellm"
        model = {"model": f"openai/{MODEL}", "api_base": f"{self.mock.url}/v1", "api_key": "none"}
        config = self._run_folder / "litellm.yaml"  # JSON is YAML
        config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": model}]}))
        argv = [str(program), "--config", str(config), "--host", "127.0.0.1", "--num_workers", "1"]
        argv += ["--telemetry", "False"]
        key = f"sk-{secrets.token_hex(16)}"
        env = {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        server = self._start(LITELLM_PEER, lambda port: [*argv, "--port", str(port)], "/health/liveliness", env)
        return Peer(LITELLM_PEER, server, (f"authorization: Bearer {key}",))

    def start_gateway(self, name: str) -> Peer:
        """The gateway, every feature on."""
        state = self._run_folder / name.replace(" ", "-")
        env = {
            "PREFLOOP_CONFIG": os.devnull,
            "PREFLOOP_STATE_DIR": str(state),
            "PREFLOOP_POLICY": MODEL,
            "PREFLOOP_GATEWAY__ENGINES": json.dumps([self.mock.url]),
            "PREFLOOP_ROLLOUT__STEPS": _CANARY_STEPS,
            "PREFLOOP_GATEWAY__RECORD_COMPLETIONS": "true",
            "PREFLOOP_GATEWAY__PRICE_PER_MILLION_PROMPT_TOKENS": "1",
            "PREFLOOP_GATEWAY__PRICE_PER_MILLION_COMPLETION_TOKENS": "1",
        }
        self._stack.callback(shutil.rmtree, state, ignore_errors=True)  # recorded completions are large
        server = self._start(name, lambda port: [sys.executable, "-m", "gateway.app"], "/livez", env)
        key = read_admin_key(state)
        with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"}, timeout=30) as admin:
            serve_two_arms(admin, state / "checkpoints")
            return Peer(name, server, (f"authorization: Bearer {make_key(admin, 'bench', limits=LIMITS)}",))

    def _start(
        self, name: str, command: Callable[[int], list[str]], ready_path: str, env: dict[str, str] | None = None
    ) -> Server:
        port = find_port()
        log_path = self._run_folder / f"{name.replace(' ', '-')}.log"
        server = Server(name, command(port), port, log_path, {"PREFLOOP_GATEWAY__PORT": str(port), **(env or {})})
        self._stack.callback(server.stop)
        server.wait_until(ready_path, _START_S)
        return server
