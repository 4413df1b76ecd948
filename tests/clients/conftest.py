"""The clients that apps use, unchanged, against a gateway over the fake engine of tests/gateway.

What is not installed (node and npm, LangChain) skips its tests with the reason; in CI (environment CI=true) it fails them.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "gateway"))  # where its conftest finds the engine

from engine import FakeEngine  # noqa: E402

from tests.gateway.conftest import Running, run_gateway, wait_until  # noqa: E402, F401

MIN_NODE = 20


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def lacks(reason: str) -> None:
    """Skip; in CI fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def lasting_gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One gateway for all tests of clients, that would always answer twice if it were asked to."""
    async with run_gateway(tmp_path_factory.mktemp("gateway"), ask_rate=1.0, max_asks_per_user_day=3) as running:
        yield running


@pytest.fixture
def gateway(lasting_gateway: Running) -> Running:
    """The same, its engine as new."""
    engine = lasting_gateway.engine
    vars(engine).update(vars(FakeEngine(adapters=engine.adapters)))
    return lasting_gateway


@pytest.fixture(scope="session")
def node_modules(pytestconfig: pytest.Config) -> Path:
    """A folder with the pinned packages installed; kept in pytest's cache between runs."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        lacks("no node or npm: apt-get install nodejs npm")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").split(".")[0]) < MIN_NODE:
        lacks(f"node {version.strip()} is older than {MIN_NODE}")
    folder = pytestconfig.cache.mkdir("node-clients")
    wanted = (HERE / "package.json").read_text()
    installed = folder / "installed.json"
    if not installed.exists() or installed.read_text() != wanted:
        (folder / "package.json").write_text(wanted)
        flags = ["--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(["npm", "install", *flags], cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode:
            lacks(f"npm install failed: {done.stderr[-500:]}")
        installed.write_text(wanted)
    return folder / "node_modules"


@pytest.fixture
def node_folder(node_modules: Path, tmp_path: Path) -> Path:
    """A folder in which a module finds the packages."""
    folder = tmp_path / "node"
    folder.mkdir()
    (folder / "node_modules").symlink_to(node_modules)
    return folder
