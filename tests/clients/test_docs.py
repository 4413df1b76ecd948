"""docs/apps.md: its Python runs as it stands, and what it links to is there."""

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import HERE, Running

pytestmark = pytest.mark.asyncio(loop_scope="package")

DOCS = HERE.parent.parent / "docs"
TEXT = (DOCS / "apps.md").read_text()


async def test_the_python_of_the_manual_runs_and_stores_a_choice(gateway: Running, tmp_path: Path) -> None:
    num_choices = gateway.context.deployment.counters.choices
    program = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    program = program.replace("http://127.0.0.1:8800", gateway.url).replace("pl_…", gateway.key)
    script = tmp_path / "manual.py"
    script.write_text(f"{program}\nprint(len(texts), bool(comparison))\n")
    process = await asyncio.create_subprocess_exec(sys.executable, script, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert out.decode().splitlines() == ["Answer of seed None.", "2 True"]
    async with gateway.http.get(f"{gateway.url}/operator/v1/status", headers=gateway.admin) as answer:
        assert (await answer.json())["counters"]["choices"] == num_choices + 1


async def test_the_example_and_the_tests_use_the_same_client() -> None:
    example, tests = (
        json.loads((folder / "package.json").read_text()) for folder in (DOCS / "examples" / "node", HERE)
    )
    assert example["dependencies"] == tests["dependencies"]


async def test_what_the_manual_names_is_there() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (DOCS / link).exists(), link
    source = "".join(path.read_text() for path in sorted((DOCS.parent / "gateway" / "web").glob("compare*.js")))
    for name in re.findall(r"prefloop-(?:state|answer|choice|error)\b", TEXT):
        assert f'"{name}"' in source, name
    parts = re.search(r"Parts: (.+?)\.\n", TEXT, re.DOTALL)
    assert parts is not None
    assert set(re.findall(r"`(\w+)`", parts[1])) == set(" ".join(re.findall(r'part: "([\w ]+)"', source)).split())
    properties = re.search(r"Properties: (.+?)\. Parts", TEXT, re.DOTALL)
    assert properties is not None
    names = {name.removeprefix("--prefloop") for name in re.findall(r"`([\w-]+)`", properties[1])}
    assert names == {f"-{name}" for name in re.findall(r"var\(--prefloop-([\w-]+)", source)}
