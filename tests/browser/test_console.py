"""An operator in the console: signs in, reads the evidence, approves or aborts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.running_gateway import RunningGateway, let_people_choose, wait_until

pytestmark = pytest.mark.browser


def sign_in(gateway: RunningGateway, page: Page) -> None:
    page.goto(f"{gateway.url}/console")
    page.fill("#key", gateway.admin_key)
    page.keyboard.press("Enter")
    expect(page.locator("#dashboard")).to_be_visible()


@pytest.fixture
def canary(gateway: RunningGateway) -> Iterator[str]:
    """A new checkpoint on trial, whose answers differ from stable's: one more than a multiple of two after it."""
    stable = gateway.call("/operator/v1/status")["stable"]
    canary = gateway.publish(len(gateway.call("/operator/v1/checkpoints")["data"]) * 2 + 1, stable["id"])
    wait_until(lambda: gateway.call("/operator/v1/status")["canary"] is not None, "the canary serves")
    wait_until(lambda: gateway.rollout().get("phase") == "Progressing", "the canary is on trial")
    yield canary
    if gateway.rollout():  # a test that fails leaves the others a gateway without a rollout
        gateway.call(f"/operator/v1/rollouts/{gateway.rollout()['id']}:abort", {})
        wait_until(lambda: not gateway.rollout(), "the rollout has ended")


def show_baking(route: Route) -> None:
    """The status with its rollout in a phase that is soon over, and a controller that fails."""
    status = route.fetch().json()
    status["rollout"] |= {"phase": "Baking", "weight": 0.05, "weight_of": "old"}
    status["controller"] = {"problem": "KeyError: 'cap'", "num_failures": 1}
    route.fulfill(json=status)


def test_an_operator_pauses_resumes_and_aborts_with_a_reason(
    gateway: RunningGateway, canary: str, page: Page, tmp_path: Path
) -> None:
    sign_in(gateway, page)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#phase")).to_have_text("Paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#phase")).to_have_text("Progressing")
    expect(page.locator("#weight-of")).to_have_text("Canary weight")
    page.route("**/operator/v1/status", show_baking)
    expect(page.locator("#weight-of")).to_have_text("Old checkpoint’s weight")
    expect(page.locator("#controller-problem")).to_contain_text("The rollout controller fails: KeyError: 'cap'")
    page.unroute("**/operator/v1/status")
    expect(page.locator("#controller-problem")).to_be_hidden()
    page.get_by_role("button", name="Abort").click()
    page.fill("#reason", "It answers in riddles")
    page.get_by_role("dialog").get_by_role("button", name="Abort").click()
    expect(page.locator("#phase")).to_have_text("Degraded", timeout=30_000)
    expect(page.locator("#trail")).to_contain_text("Operator: It answers in riddles")
    page.screenshot(path=tmp_path / "aborted.png", full_page=True)


def test_an_operator_approves_a_canary_that_people_prefer(
    gateway: RunningGateway, canary: str, page: Page, tmp_path: Path
) -> None:
    for start in range(0, 400, 40):
        let_people_choose(gateway, 40, start=start)
        if gateway.rollout()["phase"] == "WaitingPromotion":
            break
    wait_until(lambda: gateway.rollout()["phase"] == "WaitingPromotion", "the gate has decided")

    sign_in(gateway, page)
    expect(page.locator("#phase")).to_have_text("Waiting for promotion")
    expect(page.locator("#verdict")).to_contain_text("People prefer the canary")
    expect(page.locator("#preset")).to_contain_text("demo")
    expect(page.locator("#net-plot polygon.band")).to_be_visible()
    points = page.locator("#net-plot polyline.net").get_attribute("points") or ""  # flat if every duel was won
    assert len(points.split()) == len(gateway.rollout()["series"]) > 0
    expect(page.locator("#net-plot .delta-label")).to_contain_text("+5% · the whole band must rise above")
    expect(page.locator("#net-plot line.delta")).to_have_count(1)
    expect(page.locator("#e-plot line.threshold")).to_have_count(1)
    expect(page.locator("#trail li").first).to_be_visible()
    page.screenshot(path=tmp_path / "waiting.png", full_page=True)

    page.get_by_role("button", name="Approve").click()
    page.get_by_role("dialog").get_by_role("button", name="Approve").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    wait_until(lambda: gateway.call("/operator/v1/status")["stable"]["id"] == canary, "the canary is stable")
    expect(page.locator("#phase")).to_have_text("Healthy", timeout=30_000)
    expect(page.locator("#actions")).to_be_hidden()
    page.screenshot(path=tmp_path / "promoted.png", full_page=True)


def test_a_wrong_key_stays_outside_and_a_session_ends_at_sign_out(gateway: RunningGateway, page: Page) -> None:
    page.goto(f"{gateway.url}/console")
    page.fill("#key", "pl_nobody_nothing")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("unknown or was revoked")
    sign_in(gateway, page)
    page.reload()
    expect(page.locator("#dashboard")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#sign-in")).to_be_visible()
    page.reload()
    expect(page.locator("#sign-in")).to_be_visible()


def test_a_decision_without_the_csrf_value_is_refused(gateway: RunningGateway, page: Page) -> None:
    sign_in(gateway, page)
    status = page.evaluate(
        "fetch('/operator/v1/rollouts', {method: 'POST', headers: {'content-type': 'application/json'}, "
        "body: '{\"aa\": true}'}).then((response) => response.status)"
    )
    assert status == 403
