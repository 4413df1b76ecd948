"""What `prefloop_duels_total` counts: each decided duel once, by its outcome and by where the canary's answer was shown."""

from pathlib import Path
from typing import Any

from aiohttp import web
from conftest import Running
from prometheus_client.parser import text_string_to_metric_families
from test_observed import start_trial
from test_paired import PAIR, start_duel, stored


def count_duels(gateway: Running) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(gateway.context.metrics.render().decode())
    samples = next(family for family in families if family.name == "prefloop_duels").samples
    counted = [sample for sample in samples if sample.name.endswith("_total")]
    assert len(counted) == 12  # each outcome and position is there from the start
    return {(s.labels["outcome"], s.labels["position"]): s.value for s in counted if s.value}


async def test_duels_count_by_outcome_and_by_the_canarys_place(gateway: Running, tmp_path: Path) -> None:
    await start_duel(gateway, tmp_path)
    expected: dict[tuple[str, str], float] = {}
    for user in range(12):
        answer = await gateway.ask({**PAIR, "x-prefloop-user": f"user-{user}"})
        is_first = stored(gateway, answer["comparison"]["id"]).first.arm == "canary"
        preferred = ("first", "second", "tie", "both_bad", "skip")[user % 5]
        for _ in range(2):  # said again, it counts once
            assert (await gateway.choose(answer["comparison"], preferred=preferred))[0] == 200
        if preferred == "skip":
            continue
        is_win = preferred == ("first" if is_first else "second")
        outcome = preferred if preferred in ("tie", "both_bad") else "win" if is_win else "loss"
        key = outcome, "first" if is_first else "second"
        expected[key] = expected.get(key, 0) + 1
    assert count_duels(gateway) == expected
    assert sum(expected.values()) == 10


async def test_a_pair_of_one_arm_is_no_duel(gateway: Running) -> None:
    answer = await gateway.ask(PAIR)
    await gateway.choose(answer["comparison"])
    assert count_duels(gateway) == {}


async def test_a_duel_whose_canary_failed_is_lost_without_a_place(gateway: Running) -> None:
    _, canary = await start_trial(gateway)
    answer = gateway.engine._answer

    async def fail_canary(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        if body["model"] == canary:
            return web.json_response({"error": {"message": "it is broken"}}, status=500)
        return await answer(request, body, rank)

    gateway.engine._answer = fail_canary  # type: ignore[method-assign]
    await gateway.ask(PAIR)
    assert count_duels(gateway) == {("loss", "none"): 1}
