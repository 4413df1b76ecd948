"""What an operator does on the console's pages beside the rollout's."""

import re
import urllib.error
import urllib.request

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.accessibility import list_violations
from tests.browser.console_operator import sign_in
from tests.browser.lived_in import LivedIn, let_people_live
from tests.browser.running_gateway import RunningGateway, wait_until

pytestmark = pytest.mark.browser


def is_accepted(gateway: RunningGateway, key: str) -> bool:
    """Whether the gateway lets a key ask."""
    request = urllib.request.Request(f"{gateway.url}/v1/models", headers={"authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        assert error.code == 401
        return False


def test_an_admin_makes_a_key_that_is_shown_once_limits_and_revokes_it(lived_in: LivedIn, page: Page) -> None:
    gateway = lived_in.gateway
    sign_in(gateway, page, path="/console/keys")
    page.get_by_role("button", name="Create a key").click()
    page.get_by_role("dialog").get_by_role("button", name="Create").click()
    expect(page.get_by_role("dialog")).to_be_visible()  # without a name it is not even sent
    page.get_by_label("Name of the app or person").fill("<b>kiosk</b>")
    page.get_by_label("Requests a minute").fill("30")
    page.get_by_role("dialog").get_by_role("button", name="Create").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("heading", name="The key of <b>kiosk</b>")).to_be_focused()
    key = page.locator("#fresh-key").inner_text()
    assert key.startswith("pl_") and is_accepted(gateway, key)
    row = page.get_by_role("row", name="<b>kiosk</b>")
    expect(row).to_contain_text("30 requests a minute")
    page.get_by_role("button", name="I have it").click()
    expect(page.locator("#fresh")).to_be_hidden()
    assert key not in page.content()

    page.get_by_role("button", name="Limit <b>kiosk</b>").click()
    expect(page.get_by_label("Requests a minute")).to_have_value("30")
    page.get_by_label("Requests a minute").fill("")
    page.get_by_label("Tokens a day").fill("5000")
    page.get_by_role("dialog").get_by_role("button", name="Limit").click()
    expect(row).to_contain_text("5,000 tokens a day")
    expect(row).not_to_contain_text("30 requests")

    page.get_by_role("button", name="Limit <b>kiosk</b>").click()
    page.get_by_label("Ends at the end of").fill("2099-12-31")
    page.get_by_role("dialog").get_by_role("button", name="Limit").click()
    expect(row).to_contain_text(re.compile("ends (31 Dec 2099|1 Jan 2100)"))  # the first second after that day, here
    listed = {each["name"]: each for each in gateway.call("/operator/v1/keys")["data"]}
    assert listed["<b>kiosk</b>"]["expires_at"] == 4_102_444_800
    assert listed["<b>kiosk</b>"]["limits"]["tokens_per_day"] == 5000

    page.get_by_role("button", name="Rotate <b>kiosk</b>").click()
    page.get_by_label("Hours that the present secret goes on working").fill("0")
    page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
    key_id = "_".join(key.split("_")[:2])  # a secret may have "_" too
    expect(page.locator("#fresh-key")).to_contain_text(key_id)
    rotated = page.locator("#fresh-key").inner_text()
    assert is_accepted(gateway, rotated) and not is_accepted(gateway, key)
    page.get_by_role("button", name="I have it").click()

    page.get_by_role("button", name="Revoke <b>kiosk</b>").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_have_count(0)
    page.get_by_label("Show revoked").check()
    expect(row).to_contain_text("revoked")
    listed = {each["name"]: each for each in gateway.call("/operator/v1/keys")["data"]}
    assert listed["<b>kiosk</b>"]["revoked_at"] is not None


def test_what_a_key_used_is_shown_by_day(lived_in: LivedIn, page: Page) -> None:
    sign_in(lived_in.gateway, page, path="/console/keys")
    used = lived_in.gateway.call("/operator/v1/keys")["data"][0]["usage"]["today"]["requests"]
    assert used > 0  # everybody asks with the first key
    page.get_by_role("link", name="Usage of admin by day").click()
    expect(page.get_by_role("heading", name="What admin used in the last 30 days")).to_be_focused()
    expect(page.locator("#usage tr").first).to_contain_text(f"{used:,}")
    expect(page.locator("#usage-plot .curve, #usage-plot .dot")).not_to_have_count(0)
    assert list_violations(page) == []


def test_the_keys_that_the_gateway_was_started_with_stay(lived_in: LivedIn, page: Page) -> None:
    sign_in(lived_in.gateway, page, path="/console/keys")
    page.get_by_role("button", name="Revoke admin", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.locator("#confirm-error")).to_contain_text("Could not revoke: This is the admin key")


def offer_promotion(route: Route) -> None:
    """The status as an older page might have kept it: with an action that this key may not take."""
    status = route.fetch().json()
    status["rollout"]["actions"].append("promote")
    route.fulfill(json=status)


def test_an_operator_looks_at_keys_and_is_refused_what_needs_an_admin(lived_in: LivedIn, page: Page) -> None:
    gateway = lived_in.gateway
    key = gateway.call("/operator/v1/keys", {"name": "night shift", "scope": "operator"})["key"]
    sign_in(gateway, page, key, path="/console/keys")
    expect(page.locator("#keys-scope")).to_be_visible()
    expect(page.locator("#keys")).to_contain_text("night shift")
    assert page.locator("#create:visible, #keys button").count() == 0
    page.route("**/operator/v1/status", offer_promotion)
    page.goto(f"{gateway.url}/console/rollout")
    page.get_by_role("button", name="Promote").click()
    page.fill("#reason", "Because")
    page.get_by_role("dialog").get_by_role("button", name="Promote").click()
    expect(page.locator("#confirm-error")).to_contain_text("Could not promote: This key lacks the scope admin")
    assert gateway.rollout()["phase"] == "Progressing"


def test_the_overview_says_what_happens_next_and_follows_what_people_do(lived_in: LivedIn, page: Page) -> None:
    sign_in(lived_in.gateway, page, path="/console")
    expect(page.locator("#headline")).to_have_text(f"{lived_in.canary} is on trial with 25% of users.")
    following = page.get_by_role("list", name="What happens next")
    expect(following).to_contain_text("The canary’s weight goes to 50%.")
    expect(following).to_contain_text("You may: pause, skip step, promote, abort")
    expect(following).to_contain_text("24 choices until the next round.")
    expect(page.locator("#accuracy")).to_have_text("71%")
    expect(page.locator("#problems")).to_contain_text("8 choices could not be learnt from")
    before = int(page.locator("#choices").inner_text().replace(",", ""))
    let_people_live(lived_in.gateway, num_users=6, seed=1)
    expect(page.locator("#choices")).not_to_have_text(str(before), timeout=15_000)  # without a reload
    lived_in.trainer.status["round"] = {
        "state": "training",
        "number": 5,
        "progress": 0.4,
        "reason": "",
        "seconds_left": 90,
    }
    try:
        expect(page.locator("#round")).to_have_text("5: training", timeout=15_000)
        expect(following).to_contain_text("Round 5 is training.")
    finally:
        lived_in.trainer.status["round"] = {
            "state": "idle",
            "number": 4,
            "progress": 0.6,
            "reason": "36 of 60 new choices",
        }


def show_shadowing_and_tripped(route: Route) -> None:
    """The status with its rollout shadowed, a tripwire that has tripped, and a slice that prefers stable."""
    status = route.fetch().json()
    slices = [{**one, "status": "fail"} if one["value"] == "de" else one for one in status["rollout"]["slices"]]
    wire = {"name": "flattery", "status": "tripped", "difference": 0.12, "margin": 0.05, "users": 40, "e": 31.0}
    more = {"threshold": 20.0, "foreseen": None, "text": "more of its answers flatter (+12 points, over 40 users)"}
    shadow = {"answers": 12, "min_answers": 50, "min_s": 60.0, "share": 0.1}
    changes = {"phase": "Shadowing", "shadow": shadow, "slices": slices, "tripwires": [wire | more]}
    status["rollout"] |= changes
    route.fulfill(json=status)


def test_what_forbids_a_promotion_is_shown_with_its_figures(lived_in: LivedIn, page: Page) -> None:
    page.route("**/operator/v1/status", show_shadowing_and_tripped)
    sign_in(lived_in.gateway, page)
    wire = page.locator("[data-tripwire=flattery]")
    for words in ("more of its answers flatter", "tripped", "+12% (at most 5%)", "40 users", "31 of 20"):
        expect(wire).to_contain_text(words)
    losing = page.locator("[data-slice='language=de']")
    expect(losing).to_contain_text("They prefer stable: blocks a promotion")
    expect(page.locator("#ramp [aria-current]")).to_have_text("Shadow")
    expect(page.locator("#next-move")).to_contain_text("Shadowed: 12 of 50 answers seen, none of them served")
    page.goto(f"{lived_in.gateway.url}/console")
    expect(page.locator("#problems")).to_contain_text("Tripwire flattery: more of its answers flatter")
    expect(page.locator("#problems")).to_contain_text("language=de prefers stable")


def test_a_checkpoint_is_shown_beside_its_parent_with_what_it_says(lived_in: LivedIn, page: Page) -> None:
    sign_in(lived_in.gateway, page, path=f"/console/checkpoints#{lived_in.canary}")
    expect(page.locator("#detail-heading")).to_have_text(lived_in.canary)
    expect(page.locator("#manifest")).to_contain_text(f"Began from{lived_in.stable}")
    facts = page.locator("#figures tr", has_text="facts")
    expect(facts.locator("td")).to_have_text(["facts", "0.83", "0.82", "+0.01"])
    expect(page.locator("#samples")).to_contain_text("Well! The capital of Peru")
    expect(page.locator("#ladder tr")).to_have_count(2)
    page.get_by_role("link", name=lived_in.first).click()
    expect(page.locator("#detail-heading")).to_be_focused()
    expect(page.locator("#detail-status")).to_have_text("retired")
    expect(page.locator("#samples")).to_contain_text("None on record")
    expect(page.get_by_role("button", name="Start a rollout")).to_be_visible()


def test_learning_says_what_people_reward_and_shows_a_round(lived_in: LivedIn, page: Page) -> None:
    sign_in(lived_in.gateway, page, path="/console/learning")
    expect(page.locator("#liked li")).to_have_text(
        ["shorter answers (clearly)", "lists (clearly)", "answers that get to the point at once (probably)",
         "answers that come to an end (probably)"]
    )  # fmt: skip
    expect(page.locator("#rounds tr")).to_have_count(4)
    expect(page.locator("#rounds")).to_contain_text("offline gate: facts fell from 82% to 71%")
    page.get_by_role("link", name="Show round 4").click()
    expect(page.get_by_role("heading", name="Round 4")).to_be_focused()
    expect(page.locator("#round-facts")).to_contain_text("60 new, 20 replayed")
    expect(page.locator("#round-aside")).to_have_text("2 in policy")
    expect(page.locator("#curves figure")).to_have_count(3)
    report = page.request.get(f"{lived_in.gateway.url}/console/rounds/4/report")
    assert report.status == 200 and "sandbox" in report.headers["content-security-policy"]
    assert page.request.get(f"{lived_in.gateway.url}/console/rounds/99/report").status == 404


def test_feedback_shows_the_newest_comparison_with_its_verdict(lived_in: LivedIn, page: Page) -> None:
    sign_in(lived_in.gateway, page, path="/console/feedback")
    expect(page.locator("#harm")).not_to_have_text("0")
    newest = page.locator("#comparisons details").first
    expect(newest).to_be_visible()
    page.get_by_role("button", name="Hold the list").click()
    newest.locator("summary").click()
    expect(newest.locator(".said").first).to_contain_text("you asked")
    expect(page.locator("#bias tr").first).to_contain_text("those that judge")


def test_engines_show_what_each_serves(lived_in: LivedIn, page: Page) -> None:
    sign_in(lived_in.gateway, page, path="/console/engines")
    row = page.locator("#engines tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("up")
    expect(row).to_contain_text(f"{lived_in.stable} (stable)")
    expect(row).to_contain_text(f"{lived_in.canary} (canary)")
    wait_until(lambda: page.locator("#gateways tr").count() == 1, "the gateway reports itself")


def test_an_operator_has_a_round_run(lived_in: LivedIn, page: Page) -> None:
    gateway, trainer = lived_in.gateway, lived_in.trainer
    key = gateway.call("/operator/v1/keys", {"name": "teacher", "scope": "operator"})["key"]
    sign_in(gateway, page, key, path="/console/learning")
    page.get_by_role("button", name="Run a round").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert trainer.asked == []  # it was not confirmed
    trainer.refusal = "round 5 is under way: 60 new choices"
    page.get_by_role("button", name="Run a round").click()
    page.get_by_role("dialog").get_by_role("button", name="Run").click()
    expect(page.locator("#confirm-error")).to_have_text("Could not run: Round 5 is under way: 60 new choices.")
    trainer.refusal = ""
    page.get_by_label("From the base").check()
    assert list_violations(page) == []
    page.get_by_role("dialog").get_by_role("button", name="Run").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert trainer.asked == [{"from_base": True}]


def test_an_operator_starts_a_rollout_of_stable_against_itself(gateway: RunningGateway, page: Page) -> None:
    sign_in(gateway, page)
    before = len(gateway.call("/operator/v1/checkpoints")["data"])
    page.get_by_role("button", name="Start an A/A rollout").click()
    expect(page.get_by_role("dialog")).to_contain_text("goes on trial against itself")
    page.get_by_role("dialog").get_by_role("button", name="Start").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    wait_until(lambda: bool(gateway.rollout()) and gateway.rollout()["aa"], "the rollout is on")
    assert len(gateway.call("/operator/v1/checkpoints")["data"]) == before + 1
    gateway.call(f"/operator/v1/rollouts/{gateway.rollout()['id']}:abort", {})
    wait_until(lambda: not gateway.rollout(), "the rollout has ended")
