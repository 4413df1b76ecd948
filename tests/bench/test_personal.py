"""When a simulated person waits, what is examined in the end, and how runs are summed up."""

from typing import Any

import httpx
import pytest

from bench.personal.__main__ import list_setups, name_setup, parse_arguments, summarise
from bench.personal.person import Taught, ask, decide_trial, is_busy
from bench.personal.run import Setup, find_last, pick_questions
from prefloop.demo.tastes import find_tastes, load_tastes

TRIAL = {
    "id": "r-000001", "checkpoint": "c-000001-b", "phase": "WaitingPromotion", "generation": 4, "decision_digest": "d",
    "note": "Too little evidence yet.", "wins": 3, "losses": 2, "may_decide": True,
}  # fmt: skip


def learning(state: str = "idle", new: int = 3, trial: Any = None, reason: str = "3 of 20") -> dict[str, Any]:
    doing = {"state": state, "reason": reason}
    return {
        "first": "c-000000-a",
        "stable": "c-000000-a",
        "trainer": {"round": doing, "new_since_round": new, "round_every": 20, "rounds": []},
        "trial": trial,
    }


@pytest.mark.parametrize(
    ("seen", "waits"),
    [
        (learning(), False),
        (learning("training"), True),
        (learning(new=20), True),
        (learning("waiting", reason="c-000001-b has not been on trial yet"), True),
        (learning(new=20, trial=TRIAL), False),
        (learning(trial={**TRIAL, "phase": "Pending"}), True),
        (learning(trial={**TRIAL, "phase": "Baking"}), True),
    ],
)
def test_a_person_waits_for_a_round_and_its_checkpoint_and_not_in_a_trial(seen: dict[str, Any], waits: bool) -> None:
    assert is_busy(seen) is waits


def test_what_is_examined_is_on_trial_or_serves_and_was_taught() -> None:
    assert find_last(learning()) is None
    assert find_last(learning(trial=TRIAL)) == "c-000001-b"
    assert find_last({**learning(), "stable": "c-000002-c"}) == "c-000002-c"


@pytest.mark.parametrize(("wins", "action"), [(3, "approve"), (1, "abort")])
async def test_a_trial_is_kept_unless_it_lost_more_than_it_won(wins: int, action: str) -> None:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json={})

    taught = Taught()
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://g") as client:
        await decide_trial(client, learning(trial={**TRIAL, "wins": wins}), taught, lambda line: None)
        await decide_trial(client, learning(trial={**TRIAL, "may_decide": False}), taught, lambda line: None)
    assert [request.url.path for request in requests] == [f"/playground/trial:{action}"]
    assert [each["approved"] for each in taught.decided] == [action == "approve"]


async def test_two_streams_are_read_with_their_comparison_and_what_was_cut() -> None:
    body = (
        'data: {"choices": [{"index": 1, "delta": {"content": "B"}}]}\n\n'
        'data: {"choices": [{"index": 0, "delta": {"content": "A"}}]}\n\n'
        'data: {"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}], "comparison": {"id": "x"}}\n\n'
        "data: [DONE]\n\n"
    )
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=body))
    async with httpx.AsyncClient(transport=transport, base_url="http://g") as client:
        assert await ask(client, "Hi?") == ({0: "A", 1: "B"}, {1}, {"id": "x"})
    broken = httpx.MockTransport(lambda request: httpx.Response(200, text='data: {"error": {"message": "lost"}}\n\n'))
    async with httpx.AsyncClient(transport=broken, base_url="http://g") as client:
        with pytest.raises(ValueError, match="lost"):
            await ask(client, "Hi?")


def test_held_out_prompts_are_none_that_the_person_asks() -> None:
    tastes = load_tastes(find_tastes("brief"))
    picked = pick_questions(tastes, Setup("brief", 1, num_questions=24))
    assert len(set(picked)) == 24 and not set(picked) & set(tastes.world.people_questions())
    assert picked == pick_questions(tastes, Setup("brief", 1, num_questions=24))


def test_runs_are_named_by_what_makes_them_and_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench.personal", "--taste", "brief", "--choices", "20"])
    setups = list_setups(parse_arguments())
    assert [name_setup(setup) for setup in setups] == ["brief-1-20-48", "brief-2-20-48"]
    runs = [
        {
            "taste": "brief", "seed": seed, "win_rate": rate, "win_rate_low": rate - 0.1, "win_rate_high": rate + 0.1,
            "minutes": 15.0, "checkpoint": "c",
        }
        for seed, rate in ((1, 0.6), (2, 0.8))
    ]  # fmt: skip
    found = summarise(runs)
    assert (found["win_rate"], found["lowest_win_rate"], found["lowest_bound"]) == (
        pytest.approx(0.7), 0.6, pytest.approx(0.5),
    )  # fmt: skip
    assert found["by_run"]["brief/2"]["win_rate"] == 0.8
    assert found["win_rate_low"] == pytest.approx(0.7 - 12.7062 * 0.1, abs=1e-3)  # Student's t of one degree of freedom
    assert summarise(runs[:1])["win_rate_low"] == pytest.approx(0.5)
