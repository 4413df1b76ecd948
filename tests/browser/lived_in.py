"""A gateway with something on every page of its console: people who choose, a canary on trial, rounds, keys."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.browser.adapter_engine import OPENINGS
from tests.browser.fake_trainer import FakeTrainer, run_trainer
from tests.browser.gateway_process import SETTINGS, run_gateway
from tests.browser.running_gateway import RunningGateway, wait_until

NUM_USERS = 64
_MORE = {
    "PREFLOOP_ROLLOUT__STEPS": '[{"weight": 0.25, "hold_s": 900}, {"weight": 0.5}]',
    "PREFLOOP_ROLLOUT__MIN_USERS": "100",
    "PREFLOOP_GATEWAY__PRICE_PER_MILLION_PROMPT_TOKENS": "0.2",
}
QUESTIONS = [
    "What is the capital of Peru?",
    "Give me three ways to fall asleep faster.",
    "Write a short note to say that I will be late.",
    "Why is the sky blue?",
    "Wie koche ich ein weiches Ei?",
]
_FIGURES = [{"facts": 0.82, "tasks": 0.64, "attacks": 0.04, "kl": 0.0}, {"facts": 0.83, "tasks": 0.7, "attacks": 0.04}]


@dataclass(frozen=True)
class LivedIn:
    """The gateway, its trainer, and the checkpoints: the first, the one that serves, the one on trial."""

    gateway: RunningGateway
    trainer: FakeTrainer
    first: str
    stable: str
    canary: str


@contextmanager
def run_lived_in(folder: Path) -> Iterator[LivedIn]:
    """Until the block ends."""
    with run_trainer() as trainer:
        settings = SETTINGS | _MORE | {"PREFLOOP_GATEWAY__TRAINER_URL": trainer.url}
        with run_gateway(folder, settings) as gateway:
            yield _live(gateway, trainer)


def _live(gateway: RunningGateway, trainer: FakeTrainer) -> LivedIn:
    first = gateway.call("/operator/v1/status")["stable"]["id"]
    stable = _put_on_trial(gateway, 1, first, num_preferences=60, metrics=_FIGURES[0])
    rollout = gateway.rollout()["id"]
    gateway.call(f"/operator/v1/rollouts/{rollout}:promote", {"note": "Known from the lab"})
    wait_until(lambda: not gateway.rollout(), "it was promoted")
    canary = _put_on_trial(gateway, 2, stable, num_preferences=140, metrics=_FIGURES[1] | {"kl": 1.31})
    _tell_of_rounds(trainer, first, stable, canary)
    gateway.call("/operator/v1/keys", {"name": "shop", "limits": {"requests_per_minute": 60, "budget_per_day": 5}})
    gateway.call("/operator/v1/keys", {"name": "team on call", "scope": "operator"})
    let_people_live(gateway)
    wait_until(lambda: gateway.rollout()["evidence"]["users"] >= NUM_USERS // 2, "users have entered")
    return LivedIn(gateway, trainer, first, stable, canary)


def _put_on_trial(gateway: RunningGateway, number: int, parent: str, **fields: Any) -> str:
    checkpoint = gateway.publish(number, parent, settings={"kind": "dpo", "beta": 0.1, "start": "stable"}, **fields)
    wait_until(lambda: gateway.rollout().get("phase") == "Progressing", f"{checkpoint} is on trial")
    return checkpoint


def _tell_of_rounds(trainer: FakeTrainer, first: str, stable: str, canary: str) -> None:
    now = time.time()

    def rung(checkpoint: str, wins: float) -> dict[str, Any]:
        interval = {"value": wins, "low": wins - 0.08, "high": wins + 0.08, "n": 120}
        frozen = {"facts": 0.82, "tasks": 0.66}
        return {"checkpoint": checkpoint, "first": first, "win_rate": interval, "judge": "auditor", "frozen": frozen}

    trainer.add_round(None, "offline gate: facts fell from 82% to 71%", now - 5400)
    trainer.add_round(stable, "passed every gate", now - 3600, rung=rung(stable, 0.58))
    trainer.add_round(None, "too few new choices of two policies", now - 2000)
    trainer.add_round(canary, "passed every gate", now - 300, rung=rung(canary, 0.63))


def let_people_live(gateway: RunningGateway, *, num_users: int = NUM_USERS, seed: int = 7) -> None:
    """Users ask in two languages; most prefer the canary's answers, some skip, one reports harm."""
    draw = random.Random(seed)
    people = [(user, draw.random(), draw.random()) for user in range(num_users)]

    def live(person: tuple[int, float, float]) -> None:
        user, mood, taste = person
        question = QUESTIONS[user % len(QUESTIONS)]
        tags = {"language": "de" if question.startswith("Wie") else "en", "task": "chat" if user % 2 else "advice"}
        asked = {"model": "default", "messages": [{"role": "user", "content": question}], "metadata": tags}
        headers = {"X_Prefloop_User": f"user-{user}", "X_Prefloop_Compare": "always"}
        answer = gateway.call("/v1/chat/completions", asked, **headers)
        if (comparison := answer.get("comparison")) is None or mood < 0.05:
            return
        is_canary = [each["message"]["content"].startswith(OPENINGS[0]) for each in answer["choices"]]
        liked = "first" if is_canary[0] == (taste < 0.72) else "second"
        preferred = "skip" if mood < 0.1 else "tie" if mood < 0.18 else "both_bad" if mood < 0.24 else liked
        said = {"preferred": preferred, "token": comparison["token"], "harmful": user == 5}
        gateway.call(f"/v1/comparisons/{comparison['id']}/choice", said)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(live, people))
