"""The scorer: follows the version in use, picks for each share, refuses what it cannot take, and never dies of a row."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from feedback.scoring import ScoredCandidate, ScoreRequest
from feedback.tool_calls import append_tool_calls
from tests.trainer.learn.pairs import make_kind_pairs
from tests.trainer.tiny import TEXTS, ask, build_tiny_backbone, encode
from trainer.learn.reward.model import RewardModel
from trainer.math.asking import choose_informative, choose_telling
from trainer.run.reward.scoring import Scorer, ScoringFailed
from trainer.run.reward.scoring_pages import ScoringPages
from trainer.run.reward.states import Accepted, RewardStates, Update
from trainer.run.status.server import start_server
from trainer.sections.reward import RewardSection

SECTION = RewardSection(update_every_preferences=4, head_steps=2, window=20)
ANSWERS = ["It is Paris.", "Go away.", "Gladly: Paris is the capital of France.", "Paris."]


def make_reward(updates: int = 0) -> RewardModel:
    """A reward model that has learnt from so many batches."""
    reward = RewardModel(build_tiny_backbone(), SECTION)
    for number in range(updates):
        assert reward.update(make_kind_pairs(8, seed=number), [])
    return reward


def request(*texts: str, seed: int = 3, **fields: Any) -> ScoreRequest:
    candidates = [ScoredCandidate(text=text) for text in texts or ANSWERS]
    return ScoreRequest(messages=ask(), candidates=candidates, seed=seed, **fields)


@pytest.fixture(scope="module")
def taught() -> RewardModel:
    return make_reward(2)


@pytest.fixture
def states(tmp_path: Path, taught: RewardModel) -> RewardStates:
    """States of versions 1 and 2, of which none is accepted yet; the weights are those of 2."""
    states = RewardStates(tmp_path / "reward")
    states.prepare()
    for version in (1, 2):
        states.save(version, Update([], [], {}), taught.save)
    return states


def make_scorer(states: RewardStates, max_waiting: int = 0) -> Scorer:
    return Scorer(make_reward(), states, max_waiting)


def test_the_two_are_picked_by_the_draws_of_the_version_that_scores(states: RewardStates, taught: RewardModel) -> None:
    scorer = make_scorer(states)
    assert scorer.refresh() and not scorer.refresh()
    answer = scorer.score(request(seed=13))
    expected = taught.score([encode(taught.backbone, text) for text in ANSWERS], ANSWERS).draws
    for drawn, row in zip(answer.draws, expected.tolist(), strict=True):
        assert drawn == pytest.approx(row, abs=1e-4)
    assert answer.version == 2
    assert answer.informative == choose_informative(expected)
    assert answer.telling == choose_telling(expected, 13 % SECTION.num_draws)


def test_the_version_that_rounds_use_scores_and_not_the_newest(states: RewardStates) -> None:
    states.accept(Accepted(1, {}))
    scorer = make_scorer(states)
    scorer.refresh()
    assert scorer.version == 1
    states.accept(Accepted(2, {}))
    scorer.refresh()
    assert scorer.version == 2


def test_a_state_that_does_not_load_leaves_the_one_before_in_use(states: RewardStates) -> None:
    states.accept(Accepted(1, {}))
    scorer = make_scorer(states)
    scorer.refresh()
    (states.find(2) / "reward.safetensors").write_bytes(b"no tensors")
    states.accept(Accepted(2, {}))
    assert not scorer.refresh()
    assert (scorer.version, scorer.num_failed_loads) == (1, 1) and scorer.problem
    assert scorer.score(request()).version == 1


def test_without_a_reward_model_nothing_is_scored(tmp_path: Path) -> None:
    scorer = make_scorer(RewardStates(tmp_path / "nowhere"))
    assert not scorer.refresh()
    with pytest.raises(ScoringFailed) as failed:
        scorer.score(request())
    assert failed.value.reason == "not_ready"


def test_a_row_that_cannot_be_read_is_refused_and_the_next_is_scored(states: RewardStates) -> None:
    scorer = make_scorer(states)
    scorer.refresh()
    bad = [
        request("", "Paris."),
        request("Paris. " * 200, "Paris."),
        request(prompt_token_ids=[10**6]),
        ScoreRequest(messages=[{"role": 7}], candidates=[ScoredCandidate(text="a"), ScoredCandidate(text="b")]),
    ]
    for each in bad:
        with pytest.raises(Exception) as failed:
            scorer.score(each)
        assert not isinstance(failed.value, ScoringFailed) or failed.value.reason == "unusable"
    assert scorer.score(request()).version == 2


def test_a_candidate_that_calls_a_tool_is_read_by_the_ids_it_was_sampled_as(states: RewardStates) -> None:
    calls = [{"type": "function", "function": {"name": "look", "arguments": "{}"}}]
    scorer = make_scorer(states)
    scorer.refresh()
    tokenizer = scorer._reward.backbone.transcriber._tokenizer
    prompt_ids, ids = (tokenizer(text, add_special_tokens=False).input_ids for text in (TEXTS[0], "<call>look{}"))
    called = ScoredCandidate(text=append_tool_calls("", calls), token_ids=ids, tool_calls=calls)
    asked = request(prompt_token_ids=prompt_ids)
    answer = scorer.score(replace(asked, candidates=[called, *asked.candidates]))
    assert len(answer.draws) == len(ANSWERS) + 1


def test_a_busy_scorer_refuses_at_once_and_late_requests_are_not_scored(states: RewardStates) -> None:
    clock = iter([0.0, 1.0, 2.0, 2.1]).__next__
    scorer = Scorer(make_reward(), states, 0, now=clock)
    scorer.refresh()
    with scorer._torch:
        waiting = threading.Thread(target=lambda: caught.append(_fail(scorer, request(budget_ms=500.0))))
        caught: list[str] = []
        waiting.start()
        while scorer._places._value:
            pass
        assert _fail(scorer, request()) == "busy"
    waiting.join(10)
    assert caught == ["late"]


def _fail(scorer: Scorer, asked: ScoreRequest) -> str:
    with pytest.raises(ScoringFailed) as failed:
        scorer.score(asked)
    return failed.value.reason


# Over HTTP


@pytest.fixture
def served(states: RewardStates) -> Iterator[SimpleNamespace]:
    pages = ScoringPages("loading the base policy")
    server = start_server("127.0.0.1", 0, pages, 20_000)
    yield SimpleNamespace(pages=pages, url=f"http://127.0.0.1:{server.server_port}", states=states)
    server.shutdown()


def call(url: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, Any]:
    asked = urllib.request.Request(url, data=body, headers={"content-type": kind})
    try:
        with urllib.request.urlopen(asked, timeout=20) as response:
            text = response.read().decode()
            return response.status, json.loads(text) if text.startswith("{") else text
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["code"]


GOOD = json.dumps({"messages": ask(TEXTS[0]), "candidates": [{"text": text} for text in ANSWERS]}).encode()


def test_the_server_answers_before_there_is_a_model_and_scores_once_there_is(served: SimpleNamespace) -> None:
    assert call(f"{served.url}/livez") == (200, "ok\n")
    assert call(f"{served.url}/status")[1]["reason"] == "loading the base policy"
    assert call(f"{served.url}/score", GOOD) == (503, "not_ready")
    served.pages.scorer = make_scorer(served.states)
    assert call(f"{served.url}/score", GOOD) == (503, "not_ready")
    served.pages.scorer.refresh()
    status, scored = call(f"{served.url}/score", GOOD)
    assert (status, scored["version"], len(scored["draws"])) == (200, 2, 4)
    shown = call(f"{served.url}/status")[1]
    assert shown["is_ready"] and (shown["version"], shown["num_scored"]) == (2, 1) and shown["memory_mb"] > 0
    metrics = call(f"{served.url}/metrics")[1]
    assert 'prefloop_scorer_requests_total{outcome="scored"} 1.0' in metrics
    assert 'prefloop_scorer_requests_total{outcome="not_ready"} 2.0' in metrics
    assert "prefloop_scorer_reward_version 2.0" in metrics and "process_resident_memory_bytes" in metrics


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"messages": [], "candidates": [{"text": "a"}]}',
        b'{"messages": [], "candidates": [{"text": 1}, {"text": "b"}]}',
        b'{"messages": "x", "candidates": [{"text": "a"}, {"text": "b"}]}',
        b'{"messages": [], "candidates": ' + json.dumps([{"text": "a"}] * 17).encode() + b"}",
        b"[" * 15_000,
    ],
)
def test_bad_bodies_are_refused_and_the_server_goes_on(served: SimpleNamespace, body: bytes) -> None:
    assert call(f"{served.url}/score", body) == (400, "refused")
    assert call(f"{served.url}/livez")[0] == 200


def test_other_bodies_are_refused_unread(served: SimpleNamespace) -> None:
    assert call(f"{served.url}/score", GOOD, "text/plain") == (415, "refused")
    with pytest.raises((urllib.error.HTTPError, KeyError, TypeError, OSError)):
        call(f"{served.url}/score", b"x" * 20_001)
    assert call(f"{served.url}/livez")[0] == 200
