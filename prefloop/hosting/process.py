"""`prefloop engine-host` as a process: the pod's engine under a supervisor, its pages, and a way out that cuts no answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from feedback.errors import SigningKeyError, StoreUnavailable
from feedback.settings import load_settings
from feedback.signing import read_trusted_keys
from prefloop.engine_host import RequiredModel
from prefloop.hosting.fetching import Fetcher
from prefloop.hosting.gateway import EngineDesk, WholeModel
from prefloop.hosting.metrics import HostMetrics
from prefloop.hosting.pod import Pod
from prefloop.hosting.settings import EngineHostSettings
from prefloop.pages import start_pages
from prefloop.services import Layout, full_engine_service
from prefloop.supervisor import Service, Supervisor

log = logging.getLogger("prefloop.engine_host")

SILENT_GATEWAY_S = 30.0


def run_engine_host() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return asyncio.run(host_engines(load_settings(EngineHostSettings)))


async def host_engines(settings: EngineHostSettings) -> int:
    """The same, in an event loop."""
    section, loop = settings.engine_host, asyncio.get_running_loop()
    try:
        store, trusted = settings.open_store(), read_trusted_keys(settings.trusted_keys_file)
    except (StoreUnavailable, SigningKeyError) as error:
        log.error("%s", error)
        return 1
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    url = section.advertise_url or f"http://{find_address(section.gateway_url)}:{section.engine_port}"
    supervisor, desk = Supervisor(), EngineDesk(section.gateway_url, build_key_reader(settings))
    fetcher = Fetcher(store, settings.models_dir, trusted)
    pod = Pod(
        desk, url, supervisor, fetcher.fetch, build_service(settings), host_port=section.port, silent_s=section.silent_s
    )
    server = start_pages(
        section.host, section.port, HostMetrics(pod.view).registry, lambda: find_problem(pod, loop.time()),
        {"/status": lambda: asdict(pod.view())},
    )  # fmt: skip
    log.info("an engine here is %s; pages on port %d", url, server.server_port)
    running = asyncio.create_task(pod.run(section.poll_s))
    await stopping.wait()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await pod.leave(section.drain_s)
    await supervisor.stop()
    await desk.aclose()
    server.shutdown()
    return 0


def find_problem(pod: Pod, now: float) -> str:
    """Why the host is not ready, "" if it is. now: monotonic seconds."""
    if now - pod.answered_at > SILENT_GATEWAY_S:
        return pod.view().reason or "the gateway has not said yet what it needs"
    return ""


def build_key_reader(settings: EngineHostSettings) -> Callable[[], str]:
    """What reads the operator's key. Raises OSError while the file is not there."""
    return lambda: settings.key_path.read_text().strip()


def build_service(settings: EngineHostSettings) -> Callable[[WholeModel, Path], Service]:
    """What makes vLLM serve a model's directory."""
    section = settings.engine_host
    layout = Layout(
        state_dir=settings.state_dir, engine_args=section.engine_args, max_model_len=section.max_model_len or None
    )

    def build(model: WholeModel, path: Path) -> Service:
        required = RequiredModel(model.checkpoint, str(path))
        return full_engine_service(layout, required, section.engine_port, section.engine_host)

    return build


def find_address(gateway_url: str) -> str:
    """This machine's address as the gateway sees it, ready for a URL."""
    parts = urlsplit(gateway_url)
    family, kind, _, _, address = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # sends nothing
        found = str(probe.getsockname()[0])
    return f"[{found}]" if ":" in found else found
