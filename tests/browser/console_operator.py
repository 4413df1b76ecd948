"""What an operator does in the console: signs in, goes to a page, decides."""

from playwright.sync_api import Page, expect

from tests.browser.running_gateway import RunningGateway


def sign_in(gateway: RunningGateway, page: Page, key: str = "", path: str = "/console/rollout") -> None:
    """Sign in at a page, as the admin or with another key."""
    page.goto(gateway.url + path)
    page.fill("#key", key or gateway.admin_key)
    page.keyboard.press("Enter")
    expect(page.locator("#dashboard")).to_be_visible(timeout=15_000)


def decide(page: Page, action: str, note: str = "") -> None:
    """Press the action's button, and confirm."""
    page.get_by_role("group", name="Decide").get_by_role("button", name=action).click()
    if note:
        page.fill("#reason", note)
    page.get_by_role("dialog").get_by_role("button", name=action).click()
    expect(page.get_by_role("dialog")).to_be_hidden()


def list_offered(page: Page) -> list[str]:
    """The actions whose buttons are shown."""
    return page.locator("#actions button:visible").evaluate_all("all => all.map((one) => one.dataset.action)")
