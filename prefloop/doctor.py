"""Says what is missing on this machine, or at an engine, and how to get it.

Changes nothing but a probe adapter, which it removes.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

MIN_MEMORY_GIB = 8
MIN_DISK_GIB = 8


@dataclass(frozen=True)
class Finding:
    """One check: ok, what was seen, and what to do if it is not ok."""

    name: str
    is_ok: bool
    seen: str
    remedy: str = ""


def check_python() -> Finding:
    """Python 3.11 or newer."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        "Python", sys.version_info >= (3, 11), version, "Install Python 3.11 or newer and put it first on PATH."
    )


def check_memory(meminfo: str | None = None) -> Finding:
    """meminfo: the text of /proc/meminfo."""
    text = meminfo if meminfo is not None else Path("/proc/meminfo").read_text()
    line = next((row for row in text.splitlines() if row.startswith("MemAvailable:")), "MemAvailable: 0 kB")
    available_gib = int(line.split()[1]) / 2**20
    remedy = f"Free memory: engine and trainer together take about 5 GiB, {MIN_MEMORY_GIB} GiB is comfortable."
    return Finding("Memory", available_gib >= MIN_MEMORY_GIB, f"{available_gib:.1f} GiB available", remedy)


def check_cpu(cpuinfo: str | None = None) -> Finding:
    """cpuinfo: the text of /proc/cpuinfo."""
    text = cpuinfo if cpuinfo is not None else Path("/proc/cpuinfo").read_text()
    flags = set(next((row.split(":", 1)[1] for row in text.splitlines() if row.startswith("flags")), "").split())
    best = next((name for name in ("amx_tile", "avx512f", "avx2") if name in flags), None)
    remedy = "vLLM on CPU needs AVX2: use a newer machine, a GPU (pip install 'prefloop[gpu]') or --engine URL."
    return Finding("CPU", best is not None, f"{best or 'no AVX2'}, {os.cpu_count()} cores", remedy)


def check_disk() -> Finding:
    """Room for the packages."""
    free_gib = shutil.disk_usage(".").free / 2**30
    return Finding(
        "Disk", free_gib >= MIN_DISK_GIB, f"{free_gib:.0f} GiB free", "Free some space: the packages take 6 GiB."
    )


def check_module(name: str, remedy: str) -> Finding:
    """A package that can be imported."""
    found = importlib.util.find_spec(name) is not None
    return Finding(name, found, "installed" if found else "missing", remedy)


def check_sqlite() -> Finding:
    """A SQLite that several processes may share."""
    try:
        import pysqlite3
    except ImportError:
        return Finding("SQLite", False, "pysqlite3 is missing", "pip install pysqlite3 (it bundles a recent SQLite).")
    version = pysqlite3.sqlite_version
    is_recent = tuple(map(int, version.split("."))) >= (3, 51, 3)
    return Finding(
        "SQLite", is_recent, version, "Update pysqlite3: older SQLite can corrupt a WAL shared by processes."
    )


def check_store() -> Iterator[Finding]:
    """Whether the checkpoint store answers and its keys can be read; nothing where checkpoints lie in a directory."""
    from feedback.errors import FeedbackError
    from feedback.settings import SharedSettings
    from feedback.signing import read_signing_key, read_trusted_keys

    settings = SharedSettings()
    if settings.checkpoints_url:
        remedy = (
            "Check the bucket, the rights and AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY."
        )
        try:
            store = settings.open_store()
            seen = f"{len(store.list_ids()) if store else 0} checkpoints in {settings.checkpoints_url}"
            yield Finding("checkpoint store", True, seen)
        except FeedbackError as error:
            yield Finding("checkpoint store", False, str(error), remedy)
    try:
        key, trusted = read_signing_key(settings.signing_key_file), read_trusted_keys(settings.trusted_keys_file)
    except FeedbackError as error:
        yield Finding("signing keys", False, str(error), "`prefloop checkpoints sign-key` makes a pair.")
        return
    if key is not None and trusted is not None:
        is_trusted = key.fingerprint in trusted.by_fingerprint
        remedy = "Add its public key to trusted_keys_file: what it signs is refused."
        yield Finding("signing keys", is_trusted, f"{key.fingerprint} is {'' if is_trusted else 'not '}trusted", remedy)


def diagnose_machine() -> Iterator[Finding]:
    """Everything that `prefloop up` needs of this machine."""
    yield check_python()
    yield check_memory()
    yield check_cpu()
    yield check_disk()
    yield check_sqlite()
    yield check_module("vllm", "pip install 'prefloop[cpu]' (or [gpu]); not needed with --engine URL.")
    yield check_module("torch", "Run `make install`.")
    yield from check_store()


def diagnose_engine(url: str, state_dir: Path, get: Callable[..., httpx.Response] = httpx.request) -> Iterator[Finding]:
    """Ask a running engine what prefloop needs of it. Loads an adapter that does not exist: the answer tells all."""
    remedy = "Start vLLM's OpenAI server there."
    try:
        yield from _diagnose_answers(url, state_dir, get)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        yield Finding("engine", False, f"{url} does not answer: {error}", remedy)
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Finding("engine", False, f"{url} does not answer as vLLM does", remedy)


def _diagnose_answers(url: str, state_dir: Path, get: Callable[..., httpx.Response]) -> Iterator[Finding]:
    models = get("GET", f"{url}/v1/models", timeout=10).raise_for_status()
    base = next((row for row in models.json()["data"] if not row.get("parent")), None)
    yield Finding("engine", base is not None, f"serves {base['id'] if base else 'no base model'}")
    yield from _diagnose_lora(url, state_dir, get)
    if base is not None:
        body: dict[str, object] = {"model": base["id"], "messages": [{"role": "user", "content": "hello"}]}
        tokenized = get("POST", f"{url}/tokenize", json=body, timeout=10)
        yield Finding(
            "chat template",
            tokenized.status_code == 200,
            "present" if tokenized.status_code == 200 else tokenized.text[:120],
            "Start the engine with --chat-template FILE, or use a model whose tokenizer has one.",
        )


def _diagnose_lora(url: str, state_dir: Path, get: Callable[..., httpx.Response]) -> Iterator[Finding]:
    remedy = "Start it with --enable-lora --max-lora-rank 16 and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."
    missing = {"lora_name": "prefloop-doctor", "lora_path": "/prefloop/doctor/missing"}
    answer = get("POST", f"{url}/v1/load_lora_adapter", json=missing, timeout=30)
    is_off = answer.status_code in (404, 405) and "adapter" not in answer.text.lower()
    yield Finding("runtime LoRA", not is_off, "off" if is_off else "on", remedy)
    adapters = sorted((state_dir / "checkpoints").glob("c-*")) if (state_dir / "checkpoints").is_dir() else []
    if is_off or not adapters:
        why = "not checked: no checkpoint yet" if not is_off else "not checked"
        yield Finding("path and rank", not is_off, why, "Run `prefloop up --engine URL` once, then ask again.")
        return
    probe = {"lora_name": "prefloop-doctor", "lora_path": str(adapters[0].resolve())}
    loaded = get("POST", f"{url}/v1/load_lora_adapter", json=probe, timeout=60)
    if loaded.status_code == 200:
        get("POST", f"{url}/v1/unload_lora_adapter", json={"lora_name": "prefloop-doctor"}, timeout=30)
    yield Finding(
        "path and rank",
        loaded.status_code == 200,
        "an adapter of ours loads" if loaded.status_code == 200 else loaded.text[:160],
        "The engine must see the state directory under the same path, and --max-lora-rank must be at least 16.",
    )
