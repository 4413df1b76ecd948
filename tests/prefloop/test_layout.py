"""How prefloop's files lie: none imports itself through others, and none has outgrown one idea."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_LINES = 300


def list_imports() -> dict[str, set[str]]:
    """Every module of prefloop, with the modules of prefloop that it imports anywhere."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "prefloop").rglob("*.py")
    }
    imports: dict[str, set[str]] = {}
    for name, path in paths.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        imports[name] = found & paths.keys()
    return imports


def test_no_file_imports_itself_through_others() -> None:
    imports = list_imports()
    assert len(imports) > 20
    order = list(TopologicalSorter(imports).static_order())  # raises CycleError with the circle
    assert order[-1] == "prefloop.cli"


def test_no_file_is_longer_than_one_idea() -> None:
    lengths = {str(path): len(path.read_text().splitlines()) for path in (ROOT / "prefloop").rglob("*.py")}
    assert {path: num for path, num in lengths.items() if num > MAX_LINES} == {}
