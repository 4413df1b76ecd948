"""Who is asked, and by which checkpoints."""

from dataclasses import dataclass
from random import Random

import pytest
from msgspec import Raw

from gateway.access.keys import Identity
from gateway.engines.deployment import ServingView
from gateway.errors import ApiError
from gateway.sections.serving import GatewaySection
from gateway.serving.body import EngineRequest
from gateway.serving.pairs.asking import (
    Ask,
    AskLedger,
    choose_sides,
    decide_ask,
    is_duelist,
    is_swapped,
    may_pair,
    read_compare,
)
from gateway.serving.routing import Route, choose_route


@dataclass
class Who:
    """Somebody whose hashes are known."""

    user: str
    conversation: str

    @property
    def unit(self) -> str:
        return self.user or self.conversation


ANN = Who("ann", "talk")
APP = Identity("k", "app", frozenset({"app"}), pairs=True)
STABLE = Route("stable", "c-0", "default")
TRIAL = ServingView(3, "c-0", "c-1", 0.25, 0.5, b"salt", "r-1")


def request(**fields: object) -> EngineRequest:
    return EngineRequest(model="default", messages=Raw(b'[{"role":"user","content":"Hi"}]'), **fields)  # type: ignore[arg-type]


def test_auto_asks_at_the_rate_and_logs_the_propensity() -> None:
    settings = GatewaySection(ask_rate=0.10, random_share=0.02, max_asks_per_user_day=10**9)
    rng, ledger = Random(1), AskLedger(1000)
    asks = [decide_ask("auto", ANN, settings, ledger, now=0.0, rng=rng) for _ in range(20_000)]
    num_random = sum(ask == Ask("random", 0.02) for ask in asks)
    num_policy = sum(ask == Ask("policy", 0.98 * 0.10) for ask in asks)
    assert 320 < num_random < 480  # 400, 4 standard deviations
    assert 1790 < num_policy < 2130  # 1960
    assert num_random + num_policy == sum(ask is not None for ask in asks)


def test_the_cap_and_the_cool_down_hold_for_a_day_and_random_asking_ignores_them() -> None:
    settings = GatewaySection(ask_rate=1.0, random_share=0.0, max_asks_per_user_day=2)
    ledger, rng = AskLedger(2), Random(1)
    ledger.note_asked("ann", 0.0)
    ledger.note_asked("ann", 10.0)
    assert decide_ask("auto", ANN, settings, ledger, now=86_399.0, rng=rng) is None
    assert decide_ask("always", ANN, settings, ledger, now=20.0, rng=rng) == Ask("policy", 1.0)
    assert decide_ask("auto", ANN, settings, ledger, now=86_400.0, rng=rng) == Ask("policy", 1.0)
    ledger.note_skipped("ann", 90_000.0)
    assert decide_ask("auto", ANN, settings, ledger, now=89_999.0, rng=rng) is None
    always_random = GatewaySection(ask_rate=1.0, random_share=1.0)
    assert decide_ask("auto", ANN, always_random, ledger, now=89_999.0, rng=rng) == Ask("random", 1.0)
    assert decide_ask("never", ANN, always_random, ledger, now=0.0, rng=rng) is None


def test_the_ledger_forgets_the_oldest_users() -> None:
    ledger = AskLedger(1, max_users=2)
    for user in ("a", "b", "c"):
        ledger.note_asked(user, 0.0)
    assert [ledger.num_asked(user, 1.0) for user in ("a", "b", "c")] == [0, 1, 1]


def test_the_ledger_keeps_no_more_times_than_the_cap() -> None:
    ledger = AskLedger(3)
    for second in range(100):
        ledger.note_asked("ann", float(second))
    assert ledger.num_asked("ann", 99.0) == 3
    assert ledger.num_asked("ann", 86_400.0 + 97.5) == 2  # those kept are the last


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({}, None), ({"n": 1}, None), ({"n": 2}, "n"), ({"temperature": 0}, "temperature"), ({"seed": 0}, "seed"),
     ({"max_tokens": 100_000}, "size")],
)  # fmt: skip
def test_what_is_never_paired(fields: dict[str, object], reason: str | None) -> None:
    assert may_pair(request(**fields), APP, STABLE, 500, 900_000) == reason


def test_a_large_prompt_or_a_key_without_permission_is_never_paired() -> None:
    assert may_pair(request(), APP, STABLE, 850_000, 900_000) == "size"
    assert may_pair(request(), Identity("k", "app", frozenset({"app"})), STABLE, 500, 900_000) == "key"


def test_only_users_below_the_share_duel_and_only_in_a_rollout() -> None:
    users = [Who(f"u{i}", "talk") for i in range(4000)]
    assert 0.46 < sum(is_duelist(TRIAL, who) for who in users) / 4000 < 0.54
    assert not is_duelist(TRIAL, Who("", "talk"))
    baking = ServingView(4, "c-1", "c-0", 0.05, 1.0, b"salt", None)
    assert not any(is_duelist(baking, who) for who in users)


def test_a_duel_has_both_arms_and_an_explore_the_users_own() -> None:
    rng = Random(3)
    everyone = ServingView(3, "c-0", "c-1", 0.0, 1.0, b"salt", "r-1")
    duel = choose_sides(everyone, ANN, STABLE, rng)
    assert [(side.arm, side.checkpoint) for side in duel] == [("stable", "c-0"), ("canary", "c-1")]
    explore = choose_sides(everyone, Who("", "talk"), Route("canary", "c-1", "default"), rng)
    assert [(side.arm, side.checkpoint) for side in explore] == [("canary", "c-1")] * 2
    assert duel[0].seed != duel[1].seed and explore[0].seed != explore[1].seed


def test_the_canary_gets_its_share_and_keeps_its_users_when_the_weight_grows() -> None:
    def arms(weight: float) -> list[str]:
        view = ServingView(3, "c-0", "c-1", weight, 0.0, b"salt", "r-1")
        return [choose_route("default", "default", Who(f"u{i}", ""), APP, view, frozenset()).arm for i in range(4000)]

    low, high = arms(0.05), arms(0.25)
    assert 0.035 < low.count("canary") / 4000 < 0.065
    assert 0.22 < high.count("canary") / 4000 < 0.28
    assert all(after == "canary" for before, after in zip(low, high, strict=True) if before == "canary")


def test_the_order_is_a_fair_coin_that_depends_on_the_key() -> None:
    one = [is_swapped(f"cmp_{i}", b"one") for i in range(4000)]
    other = [is_swapped(f"cmp_{i}", b"other") for i in range(4000)]
    assert 0.46 < sum(one) / 4000 < 0.54
    assert 0.46 < sum(a == b for a, b in zip(one, other, strict=True)) / 4000 < 0.54


def test_the_compare_header_is_one_of_three_words() -> None:
    assert [read_compare(value) for value in (None, "Auto", " always ", "never")] == [
        "never",
        "auto",
        "always",
        "never",
    ]
    with pytest.raises(ApiError):
        read_compare("yes")
