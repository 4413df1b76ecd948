"""A real gateway process over a fake engine, and a Chromium to look at it with.

Without Chromium the tests are skipped with the reason; in CI (environment CI=true) they fail instead.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from tests.browser.adapter_engine import build_engine
from tests.browser.running_gateway import EXAMPLES, RunningGateway, free_port, is_answering, wait_until
from tests.browser.scripted_app import ScriptedApp, run_app

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
RECORD_EVENTS = """
window.seen = [];
for (const name of ["prefloop-answer", "prefloop-choice", "prefloop-error"])
  document.addEventListener(name, (event) => window.seen.push([name, event.detail]));
"""
SETTINGS = {
    "PREFLOOP_PRESET": "demo",
    "PREFLOOP_ROLLOUT__STEPS": '[{"weight": 0.5}]',
    "PREFLOOP_ROLLOUT__CAP": "1",
    "PREFLOOP_ROLLOUT__DELTA": "0.05",
    "PREFLOOP_ROLLOUT__WINDOW_S": "1",
    "PREFLOOP_ROLLOUT__MAX_USERS": "2000",
    "PREFLOOP_ROLLOUT__MAX_S": "600",
    "PREFLOOP_ROLLOUT__BAKING_S": "1",
    "PREFLOOP_GATEWAY__COMPARISON_COMMIT_MS": "5000",  # a busy machine is no reason not to ask
}


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A Chromium for this folder: while it is open its event loop runs, and no asyncio test could start its own."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        reason = "no Chromium: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page in which a script error or a breach of the content security policy fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Content Security" in message.text else None)
    yield page
    page.unroute_all(behavior="wait")  # what answers a request may take longer than its test
    context.close()
    assert problems == []


@pytest.fixture(scope="package")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for all tests, which serves checkpoint 0 to begin with: they count from where they began."""
    with run_gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@contextmanager
def run_gateway(folder: Path, settings: Mapping[str, str] = SETTINGS) -> Iterator[RunningGateway]:
    """A gateway process over a fake engine, until the block ends; its state and its log are in the folder."""
    seed = folder / "state" / "seed"
    seed.mkdir(parents=True)
    (seed / "examples.json").write_text(json.dumps(EXAMPLES))
    engine_port, port = free_port(), free_port()
    engine = uvicorn.Server(uvicorn.Config(build_engine(), port=engine_port, log_level="error"))
    engine_thread = threading.Thread(target=engine.run, daemon=True)
    engine_thread.start()
    environment = (
        os.environ
        | settings
        | {
            "PREFLOOP_STATE_DIR": str(folder / "state"),
            "PREFLOOP_GATEWAY__PORT": str(port),
            "PREFLOOP_GATEWAY__ENGINES": json.dumps([f"http://127.0.0.1:{engine_port}"]),
        }
    )
    log = (folder / "gateway.log").open("w")
    process = subprocess.Popen([sys.executable, "-m", "gateway.app"], env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or is_answering(f"{url}/livez"), "the gateway answers")
        assert process.poll() is None, (folder / "gateway.log").read_text()
        key = (folder / "state" / "secrets" / "admin_key").read_text().strip()
        running = RunningGateway(url, folder / "state", key)
        running.publish(0, None)
        wait_until(lambda: is_answering(f"{url}/readyz"), "a checkpoint serves")
        yield running
    finally:
        process.terminate()
        process.wait(timeout=30)
        engine.should_exit = True
        engine_thread.join(timeout=10)
        log.close()
        print((folder / "gateway.log").read_text()[-6000:])


@pytest.fixture
def app(gateway: RunningGateway) -> Iterator[ScriptedApp]:
    with run_app(gateway.url) as running:
        yield running


@pytest.fixture
def element(page: Page) -> Locator:
    page.add_init_script(RECORD_EVENTS)
    return page.locator("prefloop-compare")


@pytest.fixture
def canary(gateway: RunningGateway) -> Iterator[str]:
    """A new checkpoint on trial, whose answers differ from stable's: one more than a multiple of two after it."""
    stable = gateway.call("/operator/v1/status")["stable"]
    canary = gateway.publish(len(gateway.call("/operator/v1/checkpoints")["data"]) * 2 + 1, stable["id"])
    wait_until(lambda: gateway.call("/operator/v1/status")["canary"] is not None, "the canary serves")
    wait_until(lambda: gateway.rollout().get("phase") == "Progressing", "the canary is on trial")
    yield canary
    if gateway.rollout():  # a test that fails leaves the others a gateway without a rollout
        gateway.call(f"/operator/v1/rollouts/{gateway.rollout()['id']}:abort", {})
        wait_until(lambda: not gateway.rollout(), "the rollout has ended")
