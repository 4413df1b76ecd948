"""The arrows of the design: gateway -> feedback <- trainer; prefloop imports feedback alone; serving stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"feedback", "gateway", "trainer", "prefloop", "tests", "bench"}
MAY_IMPORT = {
    "feedback": {"feedback"},
    "gateway": {"gateway", "feedback"},
    "trainer": {"trainer", "feedback"},
    "prefloop": {"prefloop", "feedback"},
}
HEAVY = {"torch", "transformers", "scipy", "vllm", "peft", "accelerate"}
PURE = [  # decisions and statistics: no package above them, no input or output
    "gateway/rollout/pure/machine.py",
    "gateway/rollout/pure/evidence.py",
    "gateway/rollout/pure/users.py",
    "gateway/rollout/pure/guardrails.py",
    "gateway/rollout/pure/assignment.py",
    "trainer/losses.py",
    "trainer/transcript.py",
]
INPUT_OUTPUT = {"sqlalchemy", "aiohttp", "fastapi", "requests", "httpx", "socket", "subprocess", "asyncio", "feedback"}


def list_modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(path.relative_to(ROOT).parts[0] if node.level else str(node.module).partition(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_lies_below(package: str) -> None:
    modules = list_modules(package)
    assert modules
    wrong = {str(path.relative_to(ROOT)): (imported_names(path) & PACKAGES) - MAY_IMPORT[package] for path in modules}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize("package", ["feedback", "gateway", "prefloop"])
def test_only_the_trainer_imports_heavy_libraries(package: str) -> None:
    wrong = {str(path.relative_to(ROOT)): imported_names(path) & HEAVY for path in list_modules(package)}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize("name", PURE)
def test_decisions_do_no_input_or_output(name: str) -> None:
    assert imported_names(ROOT / name) & INPUT_OUTPUT == set()


@pytest.mark.parametrize("package", ["feedback", "gateway"])
def test_serving_processes_load_nothing_heavy(package: str) -> None:
    """Imports every module in a fresh interpreter and looks at what came along."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in list_modules(package)
        if path.name != "__main__.py"
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(*sorted({HEAVY!r} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_offline_commands_load_neither_gateway_nor_trainer() -> None:
    """Runs `prefloop feedback stats` in a fresh interpreter and looks at what came along."""
    code = (
        "import sys\n"
        "from prefloop.cli import app\n"
        "app(['feedback', 'stats', '--state-dir', 'no/such/folder'], standalone_mode=False)\n"
        f"print('loaded', *sorted({HEAVY | {'gateway', 'trainer', 'pyarrow'}!r} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "loaded"
