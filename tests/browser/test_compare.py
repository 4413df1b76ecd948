"""The element in a page of another origin under a strict policy: what it shows, what it sends, what goes wrong."""

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.running_gateway import wait_until
from tests.browser.scripted_app import CUT, PAIR, QUESTION, SINGLE, WAIT, ChoiceRoute, ScriptedApp, say, seen

pytestmark = pytest.mark.browser


def test_two_answers_come_side_by_side_as_they_are_written(app: ScriptedApp, page: Page, element: Locator) -> None:
    app.script = [PAIR[0], WAIT, PAIR[1], WAIT, *PAIR[2:]]
    page.goto(app.url)
    texts = element.locator(".text")
    expect(texts.nth(0)).to_have_text("Lima")
    expect(element.locator("article").nth(1)).to_be_hidden()
    app.go_on.set()
    expect(texts.nth(1)).to_have_text("The capital")
    expect(element).to_have_attribute("state", "writing")
    assert element.get_by_role("button").count() == 0
    app.go_on.set()
    expect(element).to_have_attribute("state", "asking")
    expect(texts).to_have_text(["Lima it is.", "The capital is Lima."])
    first, second = (element.locator("article").nth(i).bounding_box() for i in range(2))
    assert first and second
    assert first["y"] == second["y"] and first["width"] == pytest.approx(second["width"], abs=1)
    whole = ["Lima it is.", "The capital is Lima."]
    detail = {"id": "chatcmpl-1", "text": whole[0], "texts": whole, "comparison": QUESTION, "stopped": False}
    assert seen(page) == [["prefloop-answer", detail]]


def test_a_single_answer_is_shown_as_one(app: ScriptedApp, page: Page, element: Locator) -> None:
    app.script = SINGLE
    page.goto(app.url)
    expect(element).to_have_attribute("state", "done")
    assert element.get_attribute("pair") is None
    expect(page.locator("main")).to_match_aria_snapshot("""
        - main:
          - heading "An app" [level=1]
          - group "Answer":
            - article: Lima it is.
            - status: The answer is complete.
    """)
    assert element.get_by_role("button").count() == 0


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_events_split_across_reads_arrive_whole(app: ScriptedApp, page: Page, element: Locator, newline: str) -> None:
    app.newline, app.piece_bytes = newline, 1
    app.script = [say(0, "Größe: 🦙"), say(0, "", "stop")]
    page.goto(app.url)
    expect(element).to_have_attribute("state", "done")
    expect(element.locator(".text").first).to_have_text("Größe: 🦙")


def test_without_a_comparison_the_second_answer_goes_away(app: ScriptedApp, page: Page, element: Locator) -> None:
    app.script = [*PAIR[:3], say(0, "", "stop")]
    page.goto(app.url)
    expect(element).to_have_attribute("state", "done")
    expect(element.locator("article:visible .text")).to_have_text(["Lima it is."])
    assert seen(page)[0][1]["texts"] == ["Lima it is."]


@pytest.mark.parametrize("end", [{"error": {"message": "The engine stopped.", "code": "engine_lost"}}, CUT])
def test_an_error_in_mid_stream_is_said_and_can_be_tried_again(
    app: ScriptedApp, page: Page, element: Locator, end: Any
) -> None:
    app.script = [*PAIR[:2], WAIT, end]
    page.goto(app.url)
    expect(element.locator(".text").nth(1)).to_have_text("The capital")
    app.go_on.set()
    expect(element.get_by_role("alert")).to_have_text("The answer broke off in the middle.")
    expect(element).to_have_attribute("state", "failed")
    expect(element.locator(".text").first).to_have_text("Lima")  # what came stays readable
    name, detail = seen(page)[0]
    assert (name, detail["during"], detail["reason"]) == ("prefloop-error", "answer", "broken")
    assert (detail["code"], detail["said"]) == ((None, None) if end == CUT else ("engine_lost", "The engine stopped."))
    app.script = SINGLE
    element.get_by_role("button", name="Try again").click()
    expect(element).to_have_attribute("state", "done")
    expect(element.locator("article:visible .text")).to_have_text(["Lima it is."])
    expect(element.get_by_role("alert")).to_have_count(0)


def test_a_page_may_show_errors_its_own_way(app: ScriptedApp, page: Page, element: Locator) -> None:
    page.add_init_script('document.addEventListener("prefloop-error", (event) => event.preventDefault())')
    app.script = [CUT]
    page.goto(app.url)
    expect(element).to_have_attribute("state", "failed")
    expect(element.get_by_role("alert")).to_have_count(0)


def test_a_choice_that_was_not_stored_can_be_sent_again(app: ScriptedApp, page: Page, element: Locator) -> None:
    choices = ChoiceRoute(page, 503)
    app.script = PAIR
    page.goto(app.url)
    button = element.get_by_role("button", name="Second is better")
    button.focus()
    page.keyboard.press("Enter")
    expect(element.get_by_role("alert")).to_contain_text("could not be saved yet")
    expect(element).to_have_attribute("state", "asking")
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    expect(element).to_have_attribute("state", "chosen")
    expect(element.get_by_role("alert")).to_have_count(0)
    assert [choice["preferred"] for choice in choices.sent] == ["second", "second"]


def test_an_expired_question_says_so_and_still_lets_the_talk_go_on(
    app: ScriptedApp, page: Page, element: Locator
) -> None:
    ChoiceRoute(page, 410)
    app.script = PAIR
    page.goto(app.url)
    element.get_by_role("button", name="Second is better").click()
    expect(element.get_by_role("status")).to_contain_text("has expired")
    assert seen(page)[-1][1]["recorded"] is False


def test_an_element_that_leaves_the_page_stops_its_answer(app: ScriptedApp, page: Page, element: Locator) -> None:
    app.script = [say(0, "Lima "), WAIT]
    page.goto(app.url)
    expect(element.locator(".text").first).to_have_text("Lima")
    page.evaluate("() => { const e = document.querySelector('prefloop-compare'); document.body.append(e); }")
    page.wait_for_timeout(200)
    assert app.num_aborted == 0  # it was only moved
    page.evaluate("document.querySelector('prefloop-compare').remove()")
    wait_until(lambda: app.num_aborted == 1, "the app sees the client go", timeout_s=10)
    assert seen(page) == []


def test_stopping_keeps_what_was_written_of_the_first_answer(app: ScriptedApp, page: Page, element: Locator) -> None:
    app.script = [*PAIR[:2], WAIT]
    page.goto(app.url)
    expect(element.locator(".text").nth(1)).to_have_text("The capital")
    element.evaluate("(e) => e.stop()")
    expect(element).to_have_attribute("state", "done")
    expect(element.locator("article:visible .text")).to_have_text(["Lima"])
    assert seen(page)[0][1]["stopped"] is True


def test_going_on_without_choosing_picks_nothing(app: ScriptedApp, page: Page, element: Locator) -> None:
    choices = ChoiceRoute(page)
    app.script = PAIR
    page.goto(app.url)
    expect(element).to_have_attribute("state", "asking")
    element.evaluate("(e) => e.close()")
    expect(element.get_by_role("status")).to_have_text("Went on without choosing: the first answer stays.")
    expect(element.get_by_text("Your pick").locator("visible=true")).to_have_count(0)
    assert element.get_by_role("button").count() == 0
    assert choices.sent == []


def test_markup_in_an_answer_is_text(app: ScriptedApp, page: Page, element: Locator) -> None:
    markup = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    app.script = [say(0, markup, "stop")]
    page.goto(app.url)
    expect(element.locator(".text").first).to_have_text(markup)
    assert element.locator("img, script").count() == 0


def test_a_whole_completion_as_json_is_shown_too(app: ScriptedApp, page: Page, element: Locator) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Lima."}, "finish_reason": "stop"}
    page.route("**/answer", lambda route: route.fulfill(json={"id": "chatcmpl-2", "choices": [choice]}))
    page.goto(app.url)
    expect(element.locator("article:visible .text")).to_have_text(["Lima."])


def test_a_page_loads_with_fetchs_own_arguments(app: ScriptedApp, page: Page, element: Locator) -> None:
    app.attributes = ""
    page.route(
        "**/chat",
        lambda route: route.fulfill(
            body="".join(f"data: {json.dumps(event)}\r\n\r\n" for event in SINGLE), content_type="text/event-stream"
        ),
    )
    page.goto(app.url)
    with page.expect_request("**/chat") as sent:
        page.evaluate("""async () => {
            await customElements.whenDefined("prefloop-compare");
            const init = { method: "POST", headers: { "x-csrf": "1" }, body: "{}" };
            await document.querySelector("prefloop-compare").load("/chat", init);
        }""")
    assert (sent.value.method, sent.value.headers["x-csrf"]) == ("POST", "1")
    assert re.match("text/event-stream", sent.value.headers["accept"])
    expect(element).to_have_attribute("state", "done")
