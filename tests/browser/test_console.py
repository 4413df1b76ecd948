"""An operator in the console: signs in, reads the evidence, approves or aborts."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.console_operator import decide, list_offered, sign_in
from tests.browser.running_gateway import RunningGateway, let_people_choose, wait_until

pytestmark = pytest.mark.browser


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
    assert list_offered(page) == ["pause", "promote", "abort"]  # it is on the last step
    decide(page, "Pause", "Wait for Monday")
    expect(page.locator("#phase")).to_have_text("Paused")
    expect(page.locator("#next-move")).to_contain_text("Operator: an operator decided – Wait for Monday")
    assert list_offered(page) == ["resume", "promote", "abort"]
    decide(page, "Resume")
    expect(page.locator("#phase")).to_have_text("Progressing")
    expect(page.locator("#weight-of")).to_have_text("Canary weight")
    page.route("**/operator/v1/status", show_baking)
    expect(page.locator("#weight-of")).to_have_text("Old checkpoint’s weight")
    expect(page.locator("#controller-problem")).to_contain_text("The rollout controller fails: KeyError: 'cap'")
    page.unroute_all(behavior="wait")
    expect(page.locator("#controller-problem")).to_be_hidden()
    decide(page, "Abort", "It answers in riddles")
    expect(page.locator("#phase")).to_have_text("Degraded", timeout=30_000)
    expect(page.locator("#trail")).to_contain_text("Operator: an operator decided – It answers in riddles")
    expect(page.locator("#trail")).to_contain_text("by admin, key ")
    expect(page.locator("#ramp .stopped")).to_have_text("Step 1: 50%, until a verdict · Operator")
    expect(page.locator("#rollouts tr").first).to_contain_text("0 users")
    assert list_offered(page) == ["retry"]
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

    expect(page.locator("#fragility")).to_contain_text("Fragility: without the ")
    page.locator("#net-plot").hover()
    expect(page.locator("#net-plot .readout")).to_contain_text(" users: ")

    seen = gateway.rollout()
    path = f"/operator/v1/rollouts/{seen['id']}"
    page.route("**/operator/v1/status", lambda route: route.abort())  # a page that hears nothing any more
    gateway.call(f"{path}:pause", {"note": "Somebody else looks"})
    gateway.call(f"{path}:resume", {})
    page.get_by_role("button", name="Approve").click()
    expect(page.locator("#facts")).to_contain_text(seen["verdict_sentence"])
    expect(page.locator("#facts")).to_contain_text(f"{seen['decision_digest'][:12]}, generation {seen['generation']}")
    page.get_by_role("dialog").get_by_role("button", name="Approve").click()
    expect(page.locator("#confirm-error")).to_contain_text("Could not approve: The rollout has moved on")
    page.unroute_all(behavior="wait")
    expect(page.locator("#confirm-error")).to_contain_text("The decision has changed since you opened this")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert gateway.rollout()["phase"] == "WaitingPromotion"

    decide(page, "Approve")
    wait_until(lambda: gateway.call("/operator/v1/status")["stable"]["id"] == canary, "the canary is stable")
    expect(page.locator("#phase")).to_have_text("Healthy", timeout=30_000)
    assert list_offered(page) == ["rollback"]
    page.get_by_role("button", name="Replay decisions").click()
    expect(page.locator("#replay-summary")).to_have_text("1 of 1 decisions come out the same")
    expect(page.locator("#replay")).to_contain_text("same")
    page.screenshot(path=tmp_path / "promoted.png", full_page=True)


def test_an_admin_promotes_with_a_written_reason_and_rolls_back(
    gateway: RunningGateway, canary: str, page: Page, tmp_path: Path
) -> None:
    stable = gateway.call("/operator/v1/status")["stable"]["id"]
    sign_in(gateway, page)
    page.get_by_role("button", name="Promote").click()
    page.get_by_role("dialog").get_by_role("button", name="Promote").click()
    expect(page.get_by_role("dialog")).to_be_visible()  # without a reason it is not even sent
    assert gateway.rollout()["phase"] == "Progressing"
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    decide(page, "Promote", "Known from the lab")
    expect(page.locator("#phase")).to_have_text("Healthy", timeout=30_000)
    expect(page.locator("#trail")).to_contain_text("Forced: an admin promoted it past the gates – Known from the lab")

    page.get_by_role("group", name="Decide").get_by_role("button", name="Roll back").click()
    expect(page.locator("#confirm-text")).to_contain_text(f"{stable} serves everyone again")
    page.screenshot(path=tmp_path / "rolling-back.png", full_page=True)
    page.fill("#reason", "The lab was wrong")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#phase")).to_have_text("Degraded", timeout=30_000)
    assert gateway.call("/operator/v1/status")["stable"]["id"] == stable
    expect(page.locator("#ramp .stopped")).to_have_text("Rolled back")
    expect(page.locator("#trail")).to_contain_text("Rolling back")
    expect(page.locator("#trail")).to_contain_text("RolledBack: an operator rolled it back – The lab was wrong")


def test_an_operator_is_not_offered_what_needs_an_admin(gateway: RunningGateway, canary: str, page: Page) -> None:
    key = gateway.call("/operator/v1/keys", {"name": "ops", "scope": "operator"})["key"]
    sign_in(gateway, page, key)
    expect(page.locator("#phase")).to_have_text("Progressing")
    assert list_offered(page) == ["pause", "abort"]


def show_rolling_back(route: Route) -> None:
    """The status with its rollout on the way back, judged by comparisons, with a sensor that never worked."""
    status = route.fetch().json()
    blind = {"status": "blind", "seen": 0, "missing": 451, "action": "roll_back", "needed": True}
    slow = {"status": "not enough data", "seen": 1, "missing": 43, "action": "warn", "needed": False, "waived": True}
    near = {"name": "kl", "canary": 0.31, "low": 0.2, "high": 0.42, "margin": 0.5, "missing": 12, "needed": True}
    changes = {"harm": blind, "latency (alarm only)": slow, "kl (alarm only)": near}
    status["rollout"] |= {
        "phase": "RollingBack",
        "actions": ["abort", "an action of a newer gateway"],
        "guardrails": [row | changes.get(row["name"], {}) for row in status["rollout"]["guardrails"]],
        "evidence": status["rollout"]["evidence"] | {"unit": "comparison", "users": 0, "waiting": 1},
        "series": [],
    }
    route.fulfill(json=status)


def test_guardrails_say_what_their_sensor_saw_and_what_a_breach_does(
    gateway: RunningGateway, canary: str, page: Page, tmp_path: Path
) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    sign_in(gateway, page)
    expect(page.locator("#asking")).to_contain_text("Asks are random because no scorer is configured")
    page.get_by_role("button", name="Promote").focus()
    page.route("**/operator/v1/status", show_rolling_back)
    expect(page.locator("#phase")).to_have_text("Rolling back")
    expect(page.locator("#ramp [aria-current]")).to_have_text("Rolling back")
    assert list_offered(page) == ["abort"]
    expect(page.get_by_role("button", name="Abort")).to_be_focused()  # what had the focus is gone
    blind = page.locator("[data-guardrail=harm]")
    for words in ("blind", "report button and API flag", "0 answers seen", "rollout.accept_blind", "rolls back"):
        expect(blind).to_contain_text(words)
    slow = page.locator("[data-guardrail='latency (alarm only)']")
    for words in ("1 answer seen", "not needed to promote", "warns", "accepted by an operator"):
        expect(slow).to_contain_text(words)
    expect(page.locator("[data-guardrail=errors]")).to_contain_text("more clean comparisons")
    for words in ("0.31 nats", "0.20 to 0.42, margin 0.5", "12 more answers near stable’s", "pauses"):
        expect(page.locator("[data-guardrail=kl]")).to_contain_text(words)
    expect(page.locator("#e-plot .empty")).to_have_text("No comparison has entered the evidence yet")
    expect(page.locator("#votes")).to_contain_text("1 comparison waiting to enter")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # only the tables scroll sideways
    page.screenshot(path=tmp_path / "phone-dark.png", full_page=True)


def test_a_wrong_key_stays_outside_and_a_session_ends_at_sign_out(gateway: RunningGateway, page: Page) -> None:
    page.goto(f"{gateway.url}/console/rollout")
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
