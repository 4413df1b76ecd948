"""The report button: harm is said with any verdict, or without one, and only when it is meant."""

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.scripted_app import PAIR, SINGLE, ChoiceRoute, ScriptedApp, seen

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("name", "preferred"),
    [("First is better", "first"), ("Tie", "tie"), ("Both bad", "both_bad"), ("Send report only", "skip")],
)
def test_harm_is_reported_with_any_verdict(
    app: ScriptedApp, page: Page, element: Locator, name: str, preferred: str
) -> None:
    choices = ChoiceRoute(page)
    app.script = PAIR
    page.goto(app.url)
    report = element.get_by_role("button", name="Report as harmful")
    expect(report).to_have_attribute("aria-pressed", "false")
    report.click()
    expect(report).to_have_attribute("aria-pressed", "true")
    expect(element.get_by_role("status")).to_contain_text("Reported with your choice")
    assert choices.sent == []
    element.get_by_role("button", name=name).click()
    expect(element.get_by_role("status")).to_have_text("Thank you. Your report was sent.")
    assert [(sent["preferred"], sent["harmful"]) for sent in choices.sent] == [(preferred, True)]
    assert seen(page)[-1][1]["harmful"] is True


def test_a_report_is_taken_back_by_pressing_again_and_never_outlives_its_question(
    app: ScriptedApp, page: Page, element: Locator
) -> None:
    choices = ChoiceRoute(page)
    app.script = PAIR
    page.goto(app.url)
    skip = element.get_by_role("button", name="Skip")
    skip.focus()
    page.keyboard.press("h")
    expect(element.get_by_role("button", name="Send report only")).to_be_focused()  # the same button, by its new name
    page.keyboard.press("h")
    expect(skip).to_be_visible()
    page.keyboard.press("t")
    expect(element).to_have_attribute("state", "chosen")
    assert "harmful" not in choices.sent[0]
    element.evaluate("(e) => e.retry()")
    expect(element).to_have_attribute("state", "asking")
    element.evaluate("(e) => { e.harmful = true; }")
    expect(element.get_by_role("button", name="Report as harmful")).to_have_attribute("aria-pressed", "true")
    element.evaluate("(e) => e.retry()")
    expect(element).to_have_attribute("state", "asking")
    expect(element.get_by_role("button", name="Report as harmful")).to_have_attribute("aria-pressed", "false")


def test_a_single_answer_has_no_report_button(app: ScriptedApp, page: Page, element: Locator) -> None:
    app.script = SINGLE
    page.goto(app.url)
    expect(element).to_have_attribute("state", "done")
    assert element.get_by_role("button").count() == 0
