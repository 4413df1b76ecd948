"""Every page of the console, and the playground: they load, fit on a phone, and axe-core finds nothing serious in them."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from gateway.api.web_files import CONSOLE_PAGES, find_address
from tests.browser.accessibility import list_violations
from tests.browser.console_operator import sign_in
from tests.browser.lived_in import LivedIn

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("name", CONSOLE_PAGES)
def test_every_page_fits_on_a_phone_and_has_no_serious_violation_in_light_and_dark(
    lived_in: LivedIn, page: Page, name: str, tmp_path: Path
) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    sign_in(lived_in.gateway, page, path=find_address(name))
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.get_by_role("heading", level=1).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.screenshot(path=tmp_path / f"{name}-phone.png", full_page=True)
    page.set_viewport_size({"width": 1280, "height": 860})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.screenshot(path=tmp_path / f"{name}-{scheme}.png", full_page=True)
        assert list_violations(page) == []


def test_the_sign_in_form_a_confirmation_and_the_playground_have_no_serious_violation(
    lived_in: LivedIn, page: Page
) -> None:
    page.goto(f"{lived_in.gateway.url}/console")
    expect(page.locator("#sign-in")).to_be_visible()
    assert list_violations(page) == []
    sign_in(lived_in.gateway, page)
    page.get_by_role("button", name="Promote").click()
    assert list_violations(page) == []
    page.goto(lived_in.gateway.url)
    page.select_option("#compare", "always")
    page.fill("#question", "What is the capital of Peru?")
    page.keyboard.press("Enter")
    expect(page.locator("#messages prefloop-compare")).to_have_attribute("state", "asking")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert list_violations(page) == []


def test_axe_core_sees_what_is_wrong(page: Page) -> None:
    page.set_content("<html lang=en><title>x</title><main><h1>x</h1><button></button></main></html>")
    assert any("Buttons must have discernible text" in each for each in list_violations(page))
