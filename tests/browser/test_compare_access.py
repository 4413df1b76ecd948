"""The element for everybody: by keys alone, on a small screen, to a screen reader, with less motion, in other looks and words."""

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.scripted_app import PAIR, SINGLE, WAIT, ChoiceRoute, ScriptedApp, say, seen

pytestmark = pytest.mark.browser

BUTTONS = ["First is better", "Second is better", "Tie", "Both bad", "Skip", "Report as harmful"]


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
        ("ArrowUp", BUTTONS[5]),
        ("ArrowRight", BUTTONS[0]),
        ("End", BUTTONS[5]),
        ("Shift+Tab", BUTTONS[4]),
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
    assert detail == {"preferred": preferred, "harmful": False, "index": index, "text": text, "recorded": True}
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
              - button "Report as harmful"
    """)
    keys = [button.get_attribute("aria-keyshortcuts") for button in element.get_by_role("button").all()]
    assert keys == ["1", "2", "t", "b", "s", "h"]


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
