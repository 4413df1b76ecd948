"""A real gateway process over a fake engine, and a Chromium to look at it with.

Without Chromium the tests are skipped with the reason; in CI (environment CI=true) they fail instead.
"""

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from tests.browser.chromium import CHROMIUM_FLAGS, HOW_TO_GET, find_chromium
from tests.browser.gateway_process import run_gateway
from tests.browser.lived_in import LivedIn, run_lived_in
from tests.browser.running_gateway import RunningGateway, wait_until
from tests.browser.scripted_app import ScriptedApp, run_app

RECORD_EVENTS = """
window.seen = [];
for (const name of ["prefloop-answer", "prefloop-choice", "prefloop-error"])
  document.addEventListener(name, (event) => window.seen.push([name, event.detail]));
"""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A Chromium for this folder: while it is open its event loop runs, and no asyncio test could start its own."""
    path = find_chromium()
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(HOW_TO_GET)
        pytest.skip(HOW_TO_GET)
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


@pytest.fixture(scope="package")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivedIn]:
    """Another one, with something on every page of its console."""
    with run_lived_in(tmp_path_factory.mktemp("lived-in")) as running:
        yield running


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
