"""A person in the example app of docs/apps.md: the element comes from the gateway, the answers from the app's own back end."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Request, expect

from tests.browser.running_gateway import RunningGateway, free_port, is_answering, wait_until

pytestmark = pytest.mark.browser

APP = Path(__file__).resolve().parents[2] / "docs" / "examples" / "python" / "app.py"


@pytest.fixture
def app_url(gateway: RunningGateway) -> Iterator[str]:
    """The app, with a key of its own, on another origin than the gateway's."""
    key = gateway.call("/operator/v1/keys", {"name": "example", "scope": "app", "pairs": True})["key"]
    port = free_port()
    environment = os.environ | {"PREFLOOP_URL": gateway.url, "PREFLOOP_KEY": key, "PORT": str(port)}
    process = subprocess.Popen([sys.executable, str(APP)], env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or is_answering(url), "the app answers")
        assert process.poll() is None
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_a_person_asks_chooses_and_goes_on_without_a_key_in_the_browser(
    gateway: RunningGateway, app_url: str, page: Page
) -> None:
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request))
    num_choices = gateway.count_choices()
    page.goto(app_url)
    page.get_by_label("Your question").fill("What is the capital of Peru?")
    page.keyboard.press("Enter")
    compare = page.locator("prefloop-compare")
    expect(compare).to_have_attribute("state", "asking")
    chosen = compare.locator(".text").nth(1).inner_text()
    compare.get_by_role("button", name="Second is better").focus()
    page.keyboard.press("2")
    expect(compare).to_have_attribute("state", "chosen")
    assert gateway.count_choices() == num_choices + 1

    page.get_by_label("Your question").fill("And then?")
    with page.expect_request("**/chat") as asked:
        page.keyboard.press("Enter")
    history: list[dict[str, Any]] = asked.value.post_data_json["messages"]
    assert [message["content"] for message in history] == ["What is the capital of Peru?", chosen, "And then?"]
    expect(compare.last).to_have_attribute("state", "asking")

    choice = next(request for request in sent if request.url.endswith("/choice") and request.method == "POST")
    assert choice.url.startswith(gateway.url)
    assert set(choice.post_data_json) == {"preferred", "token"}
    for request in sent:
        assert "authorization" not in request.headers
        assert "cookie" not in request.headers or request.url.startswith(app_url)
