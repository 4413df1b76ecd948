"""Every page of the console: it loads, says what it is, and fits on a phone."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from gateway.api.web_files import CONSOLE_PAGES, find_address
from tests.browser.console_operator import sign_in
from tests.browser.running_gateway import RunningGateway

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("name", CONSOLE_PAGES)
def test_every_page_loads_without_a_script_error_and_fits_on_a_phone(
    gateway: RunningGateway, page: Page, name: str, tmp_path: Path
) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    sign_in(gateway, page, path=find_address(name))
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.get_by_role("heading", level=1).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.screenshot(path=tmp_path / f"{name}-phone.png", full_page=True)
    page.set_viewport_size({"width": 1280, "height": 860})
    page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
