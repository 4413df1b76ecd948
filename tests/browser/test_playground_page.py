"""A person in the playground: asks, sees two answers, picks one."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.running_gateway import EXAMPLES, RunningGateway, wait_until

pytestmark = pytest.mark.browser


def test_a_picked_answer_is_stored_and_goes_into_the_history(
    gateway: RunningGateway, page: Page, tmp_path: Path
) -> None:
    num_choices = gateway.count_choices()
    page.goto(gateway.url)
    expect(page.locator(".chip")).to_have_count(len(EXAMPLES))
    page.locator(".chip").first.click()

    compare = page.locator("#messages prefloop-compare")
    expect(compare).to_have_attribute("state", "asking")
    expect(compare.locator("article")).to_have_count(2)
    second = compare.locator("article .text").nth(1).inner_text()
    assert compare.locator("article .text").first.inner_text() != second
    page.screenshot(path=tmp_path / "asked.png")
    compare.get_by_role("button", name="Second is better").click()
    expect(compare).to_have_attribute("state", "chosen")
    expect(compare.locator("article.picked h2")).to_contain_text("Second answer")
    assert gateway.count_choices() == num_choices + 1

    page.select_option("#compare", "never")
    page.fill("#question", "And then?")
    with page.expect_request("**/playground/chat") as sent:
        page.keyboard.press("Enter")
    assert [(m["role"], m["content"]) for m in sent.value.post_data_json["messages"]][1:] == [
        ("assistant", second),
        ("user", "And then?"),
    ]
    expect(page.locator("#messages prefloop-compare").last.locator(".text").first).to_contain_text("And then?")
    page.screenshot(path=tmp_path / "chosen.png")


def test_the_keyboard_alone_is_enough_to_ask_and_choose(gateway: RunningGateway, page: Page) -> None:
    page.goto(gateway.url)
    page.keyboard.type("What is the capital of Peru?")
    page.keyboard.press("Enter")
    compare = page.locator("#messages prefloop-compare")
    expect(compare).to_have_attribute("state", "asking")
    compare.get_by_role("button", name="Skip").focus()
    page.keyboard.press("t")
    expect(compare.get_by_role("status")).to_have_text("Thank you. You called it a tie.")


def test_a_report_of_harm_reaches_the_gateway_without_a_preference(gateway: RunningGateway, page: Page) -> None:
    num_reports = gateway.call("/operator/v1/feedback")["recent"]["harmful"]
    page.goto(gateway.url)
    page.fill("#question", "What is the capital of Peru?")
    page.keyboard.press("Enter")
    compare = page.locator("#messages prefloop-compare")
    expect(compare).to_have_attribute("state", "asking")
    compare.get_by_role("button", name="Report as harmful").click()
    compare.get_by_role("button", name="Send report only").click()
    expect(compare.get_by_role("status")).to_have_text("Thank you. Your report was sent.")
    wait_until(
        lambda: gateway.call("/operator/v1/feedback")["recent"]["harmful"] == num_reports + 1, "the report is counted"
    )
    newest = gateway.call("/operator/v1/feedback/comparisons?limit=1")["data"][0]
    assert (newest["preferred"], newest["harmful"]) == ("skip", True)
    assert newest["prompt"] == "What is the capital of Peru?"


def test_markup_in_a_question_is_shown_as_text(gateway: RunningGateway, page: Page) -> None:
    page.goto(gateway.url)
    page.fill("#question", "<img src=x onerror=alert(1)><b>bold</b>")
    page.keyboard.press("Enter")
    expect(page.locator("#messages prefloop-compare")).to_have_attribute("state", "asking")
    expect(page.locator(".message.user .bubble")).to_have_text("<img src=x onerror=alert(1)><b>bold</b>")
    assert page.locator("#messages b").count() == 0


def test_a_broken_answer_is_said_kindly_and_can_be_tried_again(gateway: RunningGateway, page: Page) -> None:
    page.goto(gateway.url)
    page.route("**/playground/chat", lambda route: route.fulfill(status=503, json={"error": {"message": "x"}}))
    page.fill("#question", "Hello?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The model is not ready yet")
    page.unroute_all(behavior="wait")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#messages prefloop-compare")).to_have_attribute("state", "asking")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_on_a_phone_nothing_scrolls_sideways(gateway: RunningGateway, page: Page) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    page.goto(gateway.url)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.locator(".chip").first.click()
    expect(page.locator("#messages prefloop-compare")).to_have_attribute("state", "asking")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
