"""The Containerfiles: linted, of several stages, without root and without a compiler, of a small context, and installed as the
Makefile installs. They are built by whoever deploys: there is no container runtime here.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.k8s.manifests import K8S, OVERLAYS, ROOT, find_pod, list_pods, render

ROLES = ("gateway", "trainer", "engine")
COMPILER = re.compile(r"\b(gcc|g\+\+|clang|build-essential|libc6-dev|cmake|make|nvcc|cuda-toolkit)\b")
TRITON = ["engine"]  # on a GPU it compiles what starts its kernels, with the C compiler that it finds
EXTRAS = {  # which of pyproject's extras each role is made of
    "gateway": ["otel", "postgres", "s3"],
    "trainer": ["postgres", "s3", "trainer"],
    "engine": ['"$EXTRA"'],
}


def read_stages(role: str) -> list[list[str]]:
    """Each stage's instructions, continued lines joined and comments left out."""
    lines = [line for line in path_of(role).read_text().splitlines() if line.strip() and not line.startswith("#")]
    instructions = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    starts = [number for number, line in enumerate(instructions) if line.startswith("FROM ")]
    return [instructions[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


def path_of(role: str) -> Path:
    return K8S / "images" / f"{role}.Containerfile"


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "make install brings it"
    files = [str(path_of(role)) for role in ROLES]
    done = subprocess.run([hadolint, "--config", str(ROOT / ".hadolint.yaml"), *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("role", ROLES)
def test_what_builds_is_left_behind(role: str) -> None:
    build, final = read_stages(role)
    assert (
        build[0].endswith(" AS build") and build[0].removesuffix(" AS build") == final[0]
    )  # the venv links to its Python
    assert re.fullmatch(r"FROM python:3\.\d+-slim-\w+", final[0])
    assert [line for line in final if line.startswith("COPY")] == ["COPY --from=build /app /app"]
    installs = [line for line in final if line.startswith("RUN")]
    if role in TRITON:
        assert len(installs) == 1 and installs[0].startswith('RUN if [ "$EXTRA" = gpu ]; then')
    else:
        assert installs == [] and not any(COMPILER.search(line) for line in final)
    assert not any(COMPILER.search(line) for line in build)  # wheels alone


@pytest.mark.parametrize("role", ROLES)
def test_it_runs_as_the_manifests_user_and_without_root(role: str) -> None:
    final = read_stages(role)[-1]
    (user,) = [line.split()[1] for line in final if line.startswith("USER ")]
    for overlay in OVERLAYS:
        for pod in list_pods(render(overlay)):
            context = pod.spec["securityContext"]
            assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert final.index(f"USER {user}") > max(
        number for number, line in enumerate(final) if line.startswith(("COPY", "RUN"))
    )


@pytest.mark.parametrize("role", ROLES)
def test_it_starts_what_the_manifests_start_and_says_its_ports(role: str) -> None:
    final = read_stages(role)[-1]
    container = find_pod(render("prod"), role).container(role)
    (command,) = [re.findall(r'"([^"]+)"', line) for line in final if line.startswith("CMD ")]
    assert command == container["command"]
    (exposed,) = [line.split()[1:] for line in final if line.startswith("EXPOSE ")]
    assert str(container["ports"][0]["containerPort"]) in exposed


@pytest.mark.parametrize("role", ROLES)
def test_it_installs_what_the_makefile_installs(role: str) -> None:
    build = "\n".join(read_stages(role)[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(re.findall(r"--extra (\S+)", build)) == EXTRAS[role]
    known = project["optional-dependencies"]
    assert {extra for extras in EXTRAS.values() for extra in extras} - {'"$EXTRA"'} <= known.keys()
    makefile = (ROOT / "Makefile").read_text()
    assert "uv pip install -q --python $(PYTHON) -e '.[$(EXTRA)]'" in makefile
    assert "uv pip install" in build and "--no-deps -e ." in build and "-r pyproject.toml" in build
    assert all("prefloop[trainer]" in known[extra] for extra in ("cpu", "gpu"))
    heavy = ("torch", "transformers", "peft")  # a gateway that held them would weigh six gigabytes more
    assert not [each for each in project["dependencies"] if each.startswith(heavy)]


def test_the_context_is_what_is_copied_and_nothing_else() -> None:
    copied: set[str] = set()
    for role in ROLES:
        for line in read_stages(role)[0]:
            if line.startswith("COPY "):
                copied |= {*line.split()[1:-1]}
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
    assert any(fnmatch.fnmatch("gateway/__pycache__", line.replace("**/", "*/")) for line in lines[1:])
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packages} <= copied
