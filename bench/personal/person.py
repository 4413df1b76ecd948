"""One simulated person in the playground: asks, chooses by a taste, approves a trial or ends it by what they saw of it.

Speaks the playground's own routes, without any key, as its page does. Their taste is read nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from prefloop.demo.tastes import Person, Tastes, choose

RETRY_S = 2.0
MOST_FAILURES = 60  # in a row: an engine that starts again takes a minute or two
MOST_LAG_S = 30.0  # for the trainer to hear of a choice: one more would already count for the next round


class PersonGaveUp(Exception):
    """The gateway would not answer; the message says what it said last."""


@dataclass
class Taught:
    """What the person did so far. decided: of every trial that they ended, whether they approved it."""

    num_choices: int = 0
    num_ties: int = 0
    num_single: int = 0  # answers that came alone
    decided: list[dict[str, Any]] = field(default_factory=list)


async def teach(
    client: httpx.AsyncClient,
    tastes: Tastes,
    person: Person,
    num_choices: int,
    say: Callable[[str], None] = lambda line: None,
) -> Taught:
    """Choose until so many decisive choices are made; trials are decided on the way. Raises PersonGaveUp."""
    taught, num_failures = Taught(), 0
    questions = tastes.world.people_questions()
    person.rng.shuffle(questions)
    asked = 0
    while taught.num_choices < num_choices:
        learning = await wait_for_rounds(client, taught.num_choices, say)
        if learning is None:
            num_failures += 1
        else:
            await decide_trial(client, learning, taught, say)
        question = questions[asked % len(questions)]
        try:
            texts, cut, comparison = await ask(client, question)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            num_failures += 1
            if num_failures >= MOST_FAILURES:
                raise PersonGaveUp(str(error)) from error
            await asyncio.sleep(RETRY_S)
            continue
        asked, num_failures = asked + 1, 0
        if comparison is None:
            taught.num_single += 1
            continue
        values = [person.value_answer(tastes, question, texts[i], i in cut)[1] for i in (0, 1)]
        preferred = choose(values[0], values[1], tastes.people, person.rng)
        body = {"preferred": preferred, "token": comparison["token"]}
        await post_choice(client, comparison["id"], body)
        taught.num_choices += preferred in ("first", "second")
        taught.num_ties += preferred not in ("first", "second")
        say(f"choice {taught.num_choices} of {num_choices}: {preferred}")
    return taught


async def ask(client: httpx.AsyncClient, question: str) -> tuple[dict[int, str], set[int], dict[str, Any] | None]:
    """The answers by their place, those that were cut off, and the comparison. Raises HTTPError, ValueError for an error."""
    body = {"messages": [{"role": "user", "content": question}]}
    texts: dict[int, str] = {}
    cut: set[int] = set()
    comparison = None
    async with client.stream("POST", "/playground/chat", json=body, headers={"x-prefloop-compare": "auto"}) as answer:
        if answer.status_code != 200:
            raise ValueError(f"{answer.status_code}: {(await answer.aread()).decode()[:200]}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise ValueError(str(chunk["error"]))
            for choice in chunk.get("choices", ()):
                index = choice["index"]
                texts[index] = texts.get(index, "") + (choice["delta"].get("content") or "")
                if choice.get("finish_reason") == "length":
                    cut.add(index)
            comparison = chunk.get("comparison") or comparison
    return texts, cut, comparison if len(texts) == 2 else None


async def post_choice(client: httpx.AsyncClient, comparison: str, body: dict[str, Any]) -> None:
    """Post it until it is acknowledged; the route answers a repeat as it answered first. Raises PersonGaveUp."""
    said = ""
    for _ in range(MOST_FAILURES):
        try:
            answer = await client.post(f"/v1/comparisons/{comparison}/choice", json=body)
            if answer.status_code == 200:
                return
            said = f"{answer.status_code}: {answer.text[:200]}"
            if answer.is_client_error:
                break
        except httpx.HTTPError as error:
            said = f"{type(error).__name__}: {error}"
        await asyncio.sleep(RETRY_S)
    raise PersonGaveUp(f"the choice was not taken: {said}")


async def look(client: httpx.AsyncClient) -> dict[str, Any] | None:
    """What the page shows of learning; None while it cannot be had."""
    try:
        answer = await client.get("/playground/learning")
        found: dict[str, Any] = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    return found if found.get("trainer") else None


async def wait_for_rounds(
    client: httpx.AsyncClient, num_choices: int, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Wait while a round is due or under way, and until its checkpoint is on trial: a patient person's choices mean most then.

    num_choices: decisive ones so far, of which the trainer must have heard. None if that could not be seen.
    """
    last, began = "", time.monotonic()
    while (learning := await look(client)) is not None:
        doing = learning["trainer"]["round"]
        lags = learning["trainer"]["decisive"] < num_choices and time.monotonic() - began < MOST_LAG_S
        if not lags and not is_busy(learning):
            return learning
        line = f"{doing['state']}: {doing['reason'][:100]}"
        if line != last:
            say(line)
            last = line
        await asyncio.sleep(RETRY_S)
    return None


def is_busy(learning: dict[str, Any]) -> bool:
    """Whether choices would better wait: a round runs or is due, or its checkpoint is not on trial yet."""
    trainer, trial = learning["trainer"], learning["trial"]
    if trainer["round"]["state"] in ("preparing", "training", "evaluating", "publishing"):
        return True
    if trial is not None:
        return trial["phase"] not in ("Progressing", "WaitingPromotion", "Paused")
    return trainer["new_since_round"] >= trainer["round_every"] or "not been on trial" in trainer["round"]["reason"]


async def decide_trial(
    client: httpx.AsyncClient, learning: dict[str, Any], taught: Taught, say: Callable[[str], None]
) -> None:
    """Approve a trial whose wins are not fewer than its losses, once the page offers it; else end it."""
    trial = learning["trial"]
    if trial is None or not trial["may_decide"]:
        return
    approves = trial["wins"] >= trial["losses"]
    body = {"rollout": trial["id"]}
    if approves:
        body |= {"generation": trial["generation"], "decision_digest": trial["decision_digest"]}
    answer = await client.post(f"/playground/trial:{'approve' if approves else 'abort'}", json=body)
    if answer.status_code == 200:
        taught.decided.append({"checkpoint": trial["checkpoint"], "approved": approves, "note": trial["note"]})
        say(f"{'approved' if approves else 'ended'} {trial['checkpoint']}: {trial['note']}")


def draw_person(tastes: Tastes, seed: int) -> Person:
    """The one person of a seed, without a private deviation from the taste: it is theirs alone."""
    return Person("me", {}, random.Random(f"alone-{seed}"))
