"""Takes the pictures in docs/images: `make screenshots`, or with a folder of one's own.

The gateway is real, its engine and its trainer are the tests' own, so the figures in the pictures are made up.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.chromium import CHROMIUM_FLAGS, HOW_TO_GET, find_chromium
from tests.browser.console_operator import sign_in
from tests.browser.fake_trainer import SAMPLES
from tests.browser.lived_in import LivedIn, run_lived_in
from tests.browser.scripted_app import QUESTION, say

FOLDER = Path(__file__).parents[2] / "docs" / "images"
NUM_COLOURS = 256
DESKTOP, PHONE = (1280, 900), (390, 844)


@dataclass(frozen=True)
class Shot:
    """One picture. size: of the window; is_dark: by the system's colour scheme."""

    name: str
    path: str
    size: tuple[int, int] = DESKTOP
    is_dark: bool = False


SHOTS = (
    Shot("overview", "/console", (1280, 660)),
    Shot("overview-phone", "/console", PHONE),
    Shot("overview-dark", "/console", (1280, 660), is_dark=True),
    Shot("rollout", "/console/rollout"),
    Shot("rollout-phone", "/console/rollout", PHONE),
    Shot("rollout-dark", "/console/rollout", is_dark=True),
    Shot("checkpoints", "/console/checkpoints#{canary}"),
    Shot("learning", "/console/learning"),
    Shot("feedback", "/console/feedback"),
    Shot("keys", "/console/keys", (1280, 460)),
    Shot("engines", "/console/engines", (1280, 460)),
)


def main(folder: Path = FOLDER) -> None:
    """Write every picture into a folder."""
    path = find_chromium()
    if path is None:
        sys.exit(HOW_TO_GET)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as state,
        run_lived_in(Path(state)) as lived_in,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        for shot in SHOTS:
            save_picture(take_page(browser, lived_in, shot), folder / f"{shot.name}.png")
        save_picture(take_playground(browser, lived_in), folder / "playground.png")
        browser.close()


def take_page(browser: Browser, lived_in: LivedIn, shot: Shot) -> Page:
    """A page of the console, signed in, when it has something to show."""
    page = open_page(browser, shot)
    sign_in(lived_in.gateway, page, path=shot.path.format(canary=lived_in.canary))
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement?.blur()")
    page.wait_for_timeout(300)
    return page


def take_playground(browser: Browser, lived_in: LivedIn) -> Page:
    """The chat with two answers to choose from, which are written here."""
    page = open_page(browser, Shot("playground", "/", (1280, 720)))
    sample = SAMPLES[1]
    last = say(1, "", "stop", comparison=QUESTION)
    events = [say(0, sample["before"]), say(1, sample["after"]), say(0, "", "stop"), last]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route("**/playground/chat", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.goto(lived_in.gateway.url)
    page.fill("#question", sample["prompt"])
    page.keyboard.press("Enter")
    expect(page.locator("#messages prefloop-compare")).to_have_attribute("state", "asking")
    return page


def open_page(browser: Browser, shot: Shot) -> Page:
    """An empty page of the shot's size and scheme."""
    width, height = shot.size
    scheme = "dark" if shot.is_dark else "light"
    return browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()


def save_picture(page: Page, path: Path) -> None:
    """What the window shows, in few colours: a page has few, and the file becomes small."""
    page.screenshot(path=path)
    page.context.close()
    with Image.open(path) as taken:
        taken.convert("RGB").quantize(NUM_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
    print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
