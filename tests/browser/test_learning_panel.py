"""One person teaches the model: what the playground shows of it, and the trial that they decide."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.fake_trainer import run_trainer
from tests.browser.gateway_process import run_gateway
from tests.browser.running_gateway import RunningGateway, wait_until

pytestmark = pytest.mark.browser

STATUS: dict[str, Any] = {
    "decisive": 31,
    "new_since_round": 11,
    "round_every": 20,
    "reward": {
        "version": 8,
        "prequential_accuracy": 0.75,
        "num_foreseen": 24,
        "style": [
            {"name": "log_words", "weight": -0.8, "sd": 0.2},
            {"name": "list_markup", "weight": 0.6, "sd": 0.4},
            {"name": "exclamation", "weight": 0.3, "sd": 0.5},
            {"name": "<b>bold</b>", "weight": 9.0, "sd": 0.1},
        ],
    },
    "round": {"state": "idle", "number": 1, "progress": 0.55, "reason": "11 of 20", "seconds_left": None},
    "rounds": [{"number": 1, "checkpoint": None, "reason": "offline gate: <i>facts</i> fell"}],
}


@pytest.fixture(scope="module")
def trainer() -> Iterator[tuple[dict[str, Any], str]]:
    """A trainer's status that tests change, and where it is."""
    with run_trainer() as running:
        running.status = dict(STATUS)
        yield running.status, running.url


@pytest.fixture(scope="module")
def personal(tmp_path_factory: pytest.TempPathFactory, trainer: tuple[dict[str, Any], str]) -> Iterator[RunningGateway]:
    more = {"PREFLOOP_PRESET": "personal", "PREFLOOP_GATEWAY__TRAINER_URL": trainer[1]}
    with run_gateway(tmp_path_factory.mktemp("personal"), more) as running:
        yield running


def ask_and_pick(page: Page, question: str) -> None:
    page.fill("#question", question)
    page.keyboard.press("Enter")
    latest = page.locator("#messages prefloop-compare").last
    expect(latest).to_have_attribute("state", "asking")
    latest.get_by_role("button", name="First is better").click()
    expect(latest).to_have_attribute("state", "chosen")


def test_what_was_learnt_is_said_in_words_and_never_as_markup(
    personal: RunningGateway, page: Page, tmp_path: Path
) -> None:
    page.goto(personal.url)
    panel = page.get_by_role("complementary", name="What the model has learnt about you")
    expect(panel.get_by_role("status")).to_have_text("9 choices until the next round.")
    expect(panel.locator("#now-text")).to_have_text("11 of 20 choices")
    expect(panel.locator("#liked li")).to_have_text(["shorter answers (clearly)", "lists (probably)"])
    expect(panel.locator("#guesses")).to_have_text("It guessed 18 of your last 24 choices (75%; a coin guesses half).")
    expect(panel.locator("#last-round")).to_have_text("Round 1 made no new version: offline gate: <i>facts</i> fell.")
    assert panel.locator("i, b").count() == 0
    expect(panel.locator("#trial")).to_be_hidden()
    expect(page.locator("#intro")).to_contain_text("Every question gets two answers")
    page.screenshot(path=tmp_path / "learning.png")


def test_what_happens_now_follows_the_trainer(
    personal: RunningGateway, page: Page, trainer: tuple[dict[str, Any], str]
) -> None:
    page.goto(personal.url)
    trainer[0]["round"] = {"state": "training", "number": 2, "progress": 0.4, "reason": "", "seconds_left": 90.0}
    try:
        expect(page.locator("#now")).to_have_text("Round 2 is training.", timeout=10_000)
        expect(page.locator("#now-text")).to_have_text("40%, about 1 min 30 s left")
        trainer[0]["round"] = "nonsense"
        expect(page.locator("#now")).to_have_text("The trainer says something that cannot be read.", timeout=10_000)
    finally:
        trainer[0]["round"] = STATUS["round"]


def test_a_trial_is_decided_by_the_person_on_what_they_saw(
    personal: RunningGateway, page: Page, tmp_path: Path
) -> None:
    first = personal.call("/operator/v1/status")["stable"]["id"]
    second = personal.publish(1, first)
    page.goto(personal.url)
    wait_until(lambda: personal.rollout().get("phase") == "Progressing", "it is on trial")
    expect(page.locator("#now")).to_have_text(
        "A new version is on trial: every pair has one answer of it.", timeout=10_000
    )
    expect(page.get_by_role("button", name="Keep the new version")).to_be_disabled()
    for number in range(5):
        ask_and_pick(page, f"Question {number}?")
    expect(page.locator("#now")).to_have_text("A new version waits for your decision.", timeout=15_000)
    expect(page.locator("#trial-judged")).to_have_text("It is judged by your comparisons, not by users.")
    expect(page.locator("#trial-proof")).to_contain_text("Too little evidence yet")
    page.screenshot(path=tmp_path / "trial.png")
    page.get_by_role("button", name="Keep the new version").focus()
    page.keyboard.press("Enter")
    wait_until(lambda: personal.call("/operator/v1/status")["stable"]["id"] == second, "it serves")
    expect(page.locator("#trial")).to_be_hidden(timeout=15_000)
    assert personal.call("/operator/v1/rollouts")["data"][0]["reason"] == "Promoted"


def test_before_and_now_answer_the_same_question_side_by_side(personal: RunningGateway, page: Page) -> None:
    page.goto(personal.url)
    expect(page.locator("#learning")).to_be_visible()
    num_choices = personal.count_choices()
    page.fill("#beside-question", "How do tides work?")
    page.keyboard.press("Enter")
    for place in ("#beside-before", "#beside-now"):
        expect(page.locator(place)).to_have_attribute("state", "done")
        expect(page.locator(place).locator("article .text").first).to_contain_text("How do tides work?")
    assert page.locator("#messages prefloop-compare").count() == 0 and personal.count_choices() == num_choices


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_panel_scrolls_nothing_sideways(
    personal: RunningGateway, page: Page, scheme: Any, tmp_path: Path
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 320, "height": 640})
    page.goto(personal.url)
    expect(page.locator("#learning")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.screenshot(path=tmp_path / f"phone-{scheme}.png", full_page=True)


def test_elsewhere_the_playground_has_no_panel(gateway: RunningGateway, page: Page) -> None:
    with page.expect_response("**/playground/learning"):
        page.goto(gateway.url)
    expect(page.locator("#learning")).to_be_hidden()
