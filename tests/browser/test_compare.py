"""The element in a page of another origin under a strict policy: keys, small screens, names, errors, events."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect
from running_gateway import RunningGateway, wait_until
from scripted_app import CUT, WAIT, ScriptedApp, run_app, say

pytestmark = pytest.mark.browser

QUESTION = {"id": "cmp_1", "token": "token-1", "expires_at": 4_000_000_000}
SINGLE = [say(0, "Lima "), say(0, "it is."), say(0, "", "stop")]
PAIR = [
    say(0, "Lima "),
    say(1, "The capital "),
    say(0, "it is."),
    say(1, "is Lima."),
    say(0, "", "stop"),
    say(1, "", "stop", comparison=QUESTION),
]
BUTTONS = ["First is better", "Second is better", "Tie", "Both bad", "Skip"]
RECORD = """
window.seen = [];
for (const name of ["prefloop-answer", "prefloop-choice", "prefloop-error"])
  document.addEventListener(name, (event) => window.seen.push([name, event.detail]));
"""


@pytest.fixture
def app(lasting_gateway: RunningGateway) -> Iterator[ScriptedApp]:
    with run_app(lasting_gateway.url) as running:
        yield running


@pytest.fixture
def element(page: Page) -> Locator:
    page.add_init_script(RECORD)
    return page.locator("prefloop-compare")


class ChoiceRoute:
    """Stands in for the gateway's choice route: answers with the statuses given, then with 200."""

    def __init__(self, page: Page, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.sent: list[dict[str, Any]] = []
        page.route("**/v1/comparisons/*/choice", self._answer)

    def _answer(self, route: Route) -> None:
        self.sent.append({"url": route.request.url, **route.request.post_data_json})
        status = self.statuses.pop(0) if self.statuses else 200
        route.fulfill(status=status, json={}, headers={"access-control-allow-origin": "*"})


def seen(page: Page) -> list[Any]:
    return list(page.evaluate("window.seen"))


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


def test_the_keys_move_choose_and_stay_inside(app: ScriptedApp, page: Page, element: Locator) -> None:
    choices = ChoiceRoute(page)
    app.script = PAIR
    page.goto(app.url)
    expect(element).to_have_attribute("state", "asking")
    page.keyboard.press("t")  # the focus is elsewhere: not ours
    expect(element).to_have_attribute("state", "asking")
    page.keyboard.press("Tab")
    for key, name in (
        ("", BUTTONS[0]),
        ("ArrowRight", BUTTONS[1]),
        ("ArrowDown", BUTTONS[2]),
        ("ArrowLeft", BUTTONS[1]),
        ("Home", BUTTONS[0]),
        ("ArrowUp", BUTTONS[4]),
        ("ArrowRight", BUTTONS[0]),
        ("End", BUTTONS[4]),
        ("Shift+Tab", BUTTONS[3]),
    ):
        if key:
            page.keyboard.press(key)
        expect(element.get_by_role("button", name=name)).to_be_focused()
    outline = element.get_by_role("button", name="Both bad").evaluate(
        "(button) => getComputedStyle(button).outlineWidth"
    )
    assert float(outline.removesuffix("px")) >= 2
    page.keyboard.press("Control+t")
    assert choices.sent == []
    page.keyboard.press("Shift+T")
    expect(element.get_by_role("status")).to_have_text("Thank you. You called it a tie.")
    assert choices.sent == [{"url": choices.sent[0]["url"], "preferred": "tie", "token": "token-1"}]
    assert choices.sent[0]["url"] == f"{app.gateway}/v1/comparisons/cmp_1/choice"
    assert page.evaluate("document.activeElement.localName") == "prefloop-compare"
    assert seen(page)[1][0] == "prefloop-choice"


@pytest.mark.parametrize(
    ("key", "preferred", "index"),
    [("1", "first", 0), ("2", "second", 1), ("Numpad2", "second", 1), ("b", "both_bad", 0), ("s", "skip", 0)],
)
def test_each_key_says_its_choice(
    app: ScriptedApp, page: Page, element: Locator, key: str, preferred: str, index: int
) -> None:
    choices = ChoiceRoute(page)
    app.script = PAIR
    page.goto(app.url)
    element.get_by_role("button", name="Tie").focus()
    page.keyboard.press(key)
    expect(element).to_have_attribute("state", "chosen")
    assert [choice["preferred"] for choice in choices.sent] == [preferred]
    name, detail = seen(page)[-1]
    assert name == "prefloop-choice" and detail.pop("seconds") >= 0
    text = ["Lima it is.", "The capital is Lima."][index]
    assert detail == {"preferred": preferred, "index": index, "text": text, "recorded": True}
    expect(element.get_by_text("Your pick").locator("visible=true")).to_have_count(
        int(preferred in ("first", "second"))
    )


def test_at_320_pixels_nothing_scrolls_sideways_and_targets_are_large(
    app: ScriptedApp, page: Page, element: Locator
) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    app.script = [say(0, "Donaudampfschifffahrt" * 20), *PAIR]
    page.goto(app.url)
    expect(element).to_have_attribute("state", "asking")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    first, second = (element.locator("article").nth(i).bounding_box() for i in range(2))
    assert first and second and second["y"] >= first["y"] + first["height"]
    for button in element.get_by_role("button").all():
        box = button.bounding_box()
        assert box and box["height"] >= 44 and box["width"] >= 44 and box["x"] + box["width"] <= 320


def test_everything_has_a_role_and_a_name(app: ScriptedApp, page: Page, element: Locator) -> None:
    app.script = PAIR
    page.goto(app.url)
    expect(element).to_have_attribute("state", "asking")
    expect(page.locator("main")).to_match_aria_snapshot("""
        - main:
          - heading "An app" [level=1]
          - group "Two answers":
            - article:
              - heading "First answer" [level=2]
              - text: Lima it is.
            - article:
              - heading "Second answer" [level=2]
              - text: The capital is Lima.
            - status: Both answers are complete. Which one is better?
            - group "Which answer is better?":
              - button "First is better"
              - button "Second is better"
              - button "Tie"
              - button "Both bad"
              - button "Skip"
    """)
    keys = [button.get_attribute("aria-keyshortcuts") for button in element.get_by_role("button").all()]
    assert keys == ["1", "2", "t", "b", "s"]


def test_a_stream_is_announced_once_and_not_word_by_word(app: ScriptedApp, page: Page, element: Locator) -> None:
    page.add_init_script("""
        window.said = [];
        customElements.whenDefined("prefloop-compare").then(() => {
          const status = document.querySelector("prefloop-compare").shadowRoot.querySelector("[role=status]");
          new MutationObserver(() => window.said.push(status.textContent)).observe(status, { childList: true });
        });
    """)
    app.script = [*[say(i % 2, f"word {i} ") for i in range(200)], *PAIR[4:]]
    page.goto(app.url)
    expect(element).to_have_attribute("state", "asking")
    assert page.evaluate("window.said")[-2:] == [
        "Two answers are being written…",
        "Both answers are complete. Which one is better?",
    ]
    assert len(page.evaluate("window.said")) <= 3
    assert element.locator("[aria-live=off]").count() == 2
    expect(element.locator(".answers")).to_have_attribute("aria-busy", "false")


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


@pytest.mark.parametrize(
    ("status", "message"),
    [(400, "No."), (429, "Too many questions at once"), (500, "The model did not answer"), (503, "not ready yet")],
)
def test_a_refusal_is_put_in_plain_words(
    app: ScriptedApp, page: Page, element: Locator, status: int, message: str
) -> None:
    app.status = status
    page.goto(app.url)
    expect(element.get_by_role("alert")).to_contain_text(message)
    assert seen(page)[0][1]["status"] == status


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


def test_motion_stops_for_who_asks_for_less(app: ScriptedApp, page: Page, element: Locator) -> None:
    app.script = [say(0, "Lima "), WAIT]
    names = []
    for motion in ("no-preference", "reduce"):
        page.emulate_media(reduced_motion=motion)  # type: ignore[arg-type]
        page.goto(app.url)
        expect(element.locator(".text").first).to_have_text("Lima")
        names.append(
            element.locator(".text").first.evaluate("(text) => getComputedStyle(text, '::after').animationName")
        )
    assert names == ["blink", "none"]


def test_the_look_follows_the_page(app: ScriptedApp, page: Page, element: Locator) -> None:
    app.script = SINGLE
    page.goto(app.url)
    expect(element).to_have_attribute("state", "done")
    article = element.locator("article").first
    expect(article).to_have_css("background-color", "rgb(255, 255, 255)")
    expect(article).to_have_css("color", "rgb(23, 26, 33)")
    page.evaluate("document.documentElement.style.colorScheme = 'dark'")
    expect(article).to_have_css("background-color", "rgb(23, 26, 33)")
    expect(article).to_have_css("color", "rgb(232, 234, 240)")
    page.evaluate("""() => {
        const sheet = new CSSStyleSheet();
        sheet.replaceSync("prefloop-compare { --prefloop-surface: #123456 } prefloop-compare::part(answer) { padding: 40px }");
        document.adoptedStyleSheets = [sheet];
    }""")
    expect(article).to_have_css("background-color", "rgb(18, 52, 86)")
    expect(article).to_have_css("padding-top", "40px")


def test_the_words_can_be_translated(app: ScriptedApp, page: Page, element: Locator) -> None:
    app.attributes = ""
    app.script = PAIR
    page.goto(app.url)
    page.evaluate("""async () => {
        const Compare = await customElements.whenDefined("prefloop-compare");
        Compare.words = { ...Compare.words, buttons: { ...Compare.words.buttons, tie: "Gleich gut" } };
        const element = document.createElement("prefloop-compare");
        element.src = "/answer";
        document.querySelector("prefloop-compare").replaceWith(element);
    }""")
    expect(element.get_by_role("button", name="Gleich gut")).to_be_visible()


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
