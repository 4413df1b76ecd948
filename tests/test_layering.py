"""The arrows of the design: gateway -> feedback <- trainer; prefloop imports feedback alone; serving stays light.

Within the gateway a folder imports only those below it. Nowhere do files import each other, not through a third either.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"feedback", "gateway", "trainer", "prefloop", "tests", "bench", "k8s"}
MAY_IMPORT = {
    "feedback": {"feedback"},
    "gateway": {"gateway", "feedback"},
    "trainer": {"trainer", "feedback"},
    "prefloop": {"prefloop", "feedback"},
    "k8s": {"k8s", "prefloop"},
}
HEAVY = {"torch", "transformers", "scipy", "vllm", "peft", "accelerate"}
ORDER = {  # from the top; what stands in one line stands side by side
    "gateway": [
        ["app"],
        ["api"], ["telemetry"], ["serving"], ["notices"], ["rollout"], ["engines"], ["access"], ["http"], ["tables"],
        ["settings"], ["sections"], ["errors"],
    ],
    "trainer": [
        ["main", "scorer", "node", "seed", "full_model", "smollm"], ["once"], ["parts"], ["process"],
        ["run"], ["judge"], ["learn"], ["model"], ["text"], ["math"], ["settings"], ["sections"],
    ],
    "trainer.learn": [
        ["worker", "labelled"], ["ppo"], ["dpo", "sft"], ["dpo_step"], ["rewards"], ["reward"], ["sampling"], ["training"],
        ["loop", "references", "steps"], ["hearing", "isolation"],
    ],
    "trainer.run": [
        ["learner", "assembly"],
        ["course"], ["reward"], ["report"], ["rows"], ["intake"], ["publish"], ["status"],
        ["numbers"], ["rounds"], ["lease", "state_lock"],
    ],
}  # fmt: skip
PURE = [  # decisions and statistics: no package above them, no input or output
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "gateway/rollout/pure").glob("*.py")),
    "gateway/tables/rows.py",
    "trainer/judge/drift.py",
    "trainer/judge/gate.py",
    "trainer/judge/ladder.py",
    "trainer/math/advantages.py",
    "trainer/math/intervals.py",
    "trainer/math/losses.py",
    "trainer/math/ppo_losses.py",
    "trainer/text/messages.py",
    "trainer/text/transcript.py",
]
PURE_MAY_IMPORT = ("gateway.rollout.pure.", "gateway.tables.rows", "gateway.errors")
INPUT_OUTPUT = {
    "sqlalchemy", "aiohttp", "fastapi", "requests", "httpx", "socket", "subprocess", "asyncio", "feedback", "pydantic",
    "os", "pathlib", "time", "logging",
}  # fmt: skip


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
    wrong.pop("prefloop/engine_lora.py", None)  # runs in vLLM's processes
    assert {path: names for path, names in wrong.items() if names} == {}


def name_module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path) -> set[str]:
    """Our own modules that a file names in an import anywhere in it, also one for type checkers alone."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:  # `from gateway.rollout import transactions` names a module
                module = ROOT.joinpath(*node.module.split("."), alias.name)
                is_module = module.with_suffix(".py").exists() or module.is_dir()
                names.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return {name for name in names if name.partition(".")[0] in MAY_IMPORT} - {name_module(path)}


def find_folder(package: str, module: str) -> str:
    """The folder or file just below a package that a module is in; "" for one elsewhere."""
    return module.removeprefix(f"{package}.").partition(".")[0] if module.startswith(f"{package}.") else ""


def find_floor(package: str, module: str) -> int:
    """How far below the top of a package its module stands."""
    folder = find_folder(package, module)
    return next((floor for floor, names in enumerate(ORDER[package]) if folder in names), 0)


@pytest.mark.parametrize(
    ("package", "folder"), [(package, name) for package, floors in ORDER.items() for names in floors for name in names]
)
def test_a_folder_imports_only_those_below_it(package: str, folder: str) -> None:
    paths = [
        path for path in list_modules(package.partition(".")[0]) if find_folder(package, name_module(path)) == folder
    ]
    assert paths
    up = [
        f"{name_module(path)} -> {name}"
        for path in paths
        for name in imported_modules(path)
        if name.startswith(f"{package}.") and find_floor(package, name) < find_floor(package, name_module(path))
    ]
    assert up == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_files_import_each_other_not_through_a_third_either(package: str) -> None:
    imports = {name_module(path): imported_modules(path) for path in list_modules(package)}
    assert find_cycles(imports) == []


def find_cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which reaches all others of its group."""
    reached: dict[str, set[str]] = {}
    for module in imports:
        seen: set[str] = set()
        waiting = list(imports[module])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += imports.get(name, ())
        reached[module] = seen
    groups = {tuple(sorted(b for b in reached[a] if a in reached.get(b, ()))) for a in imports if a in reached[a]}
    return [list(group) for group in sorted(groups)]


def test_cycles_are_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d", "a"}}
    assert find_cycles(imports) == [["b", "c"], ["d"]]


@pytest.mark.parametrize("name", PURE)
def test_decisions_do_no_input_or_output(name: str) -> None:
    assert imported_names(ROOT / name) & INPUT_OUTPUT == set()
    if name.startswith("gateway/"):
        assert [module for module in imported_modules(ROOT / name) if not module.startswith(PURE_MAY_IMPORT)] == []


def test_the_rollouts_decisions_need_no_database_to_be_imported() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {[name_module(ROOT / name) for name in PURE if name.startswith('gateway/')]!r}:\n"
        "    importlib.import_module(name)\n"
        "print(*sorted({'sqlalchemy', 'pydantic', 'feedback', 'prometheus_client'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout.split()) == (0, []), result.stderr


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
