"""The simulated people: clients of the public HTTP API with a private, noisy taste, in a process of their own.

They ask with the official openai client, judge the text they get and choose; every choice is posted until it is
acknowledged. They import nothing of the gateway, the trainer or feedback, and nobody else reads the file that says
what they like. Run `python -m prefloop.demo.people --help`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import openai
from openai import AsyncOpenAI

from prefloop.demo.examination import examine
from prefloop.demo.replies import ask
from prefloop.demo.report import write_json
from prefloop.demo.stats import Stats, resume_stats
from prefloop.demo.tastes import (
    DEFAULT_TASTE,
    Person,
    Tastes,
    TastesError,
    choose,
    draw_people,
    find_tastes,
    judge_truly,
    load_tastes,
)

log = logging.getLogger("people")

STREAMED_SHARE = 0.5
REQUEST_TIMEOUT_S = 120.0
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
FIRST_RETRY_S, LAST_RETRY_S = 0.2, 5.0
FAILURE_PAUSE_S = 1.0
STOP_GRACE_S = 20.0


@dataclass
class Street:
    """What all people share while they talk. shuffle: dice that mirror every other choice; None where they mean it."""

    client: AsyncOpenAI
    http: aiohttp.ClientSession
    api_url: str
    model: str
    tastes: Tastes
    questions: Sequence[str]
    stats: Stats
    stop: asyncio.Event
    history: Callable[[dict[str, Any]], None]
    shuffle: random.Random | None = None


async def run_people(
    base_url: str,
    api_key: str,
    tastes: Tastes,
    seed: int,
    stats: Stats,
    stop: asyncio.Event,
    *,
    model: str = "default",
    concurrency: int | None = None,
    until_choices: int | None = None,
    pause_s: float = 0.0,
    history: Callable[[dict[str, Any]], None] = lambda row: None,
    questions: Sequence[str] | None = None,
    is_shuffled: bool = False,
) -> None:
    """Let the people take turns until `stop` is set, or until `until_choices` choices are acknowledged.

    concurrency: seats, by default the world's; pause_s: mean seconds between two turns of one seat. A turn that has
    begun is finished, within STOP_GRACE_S seconds.
    """
    concurrency = tastes.world.manners.seats if concurrency is None else concurrency
    api_url = find_api(base_url)
    waiting = deque(draw_people(tastes, seed))
    pauses = random.Random(f"pauses-{seed}")

    async def take_turns() -> None:
        while not stop.is_set():
            person = waiting.popleft()
            await take_turn(street, person)
            waiting.append(person)
            if until_choices is not None and stats.acks >= until_choices:
                stop.set()
            if pause_s > 0:
                await wait_for_stop(stop, pauses.expovariate(1 / pause_s))

    async with (
        AsyncOpenAI(base_url=api_url, api_key=api_key, timeout=REQUEST_TIMEOUT_S) as client,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http,
    ):
        asked = tastes.world.people_questions() if questions is None else questions
        shuffle = random.Random(f"shuffle-{seed}") if is_shuffled else None
        street = Street(client, http, api_url, model, tastes, list(asked), stats, stop, history, shuffle)
        seats = [asyncio.create_task(take_turns()) for _ in range(min(concurrency, len(waiting)))]
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([*seats, stopped], return_when=asyncio.FIRST_COMPLETED)
        try:
            for seat in done - {stopped}:
                seat.result()  # a turn catches its own failures: what comes out here is our own mistake
            await asyncio.wait(seats, timeout=STOP_GRACE_S)
        finally:
            for task in [*seats, stopped]:
                task.cancel()
            await asyncio.gather(*seats, stopped, return_exceptions=True)


async def take_turn(street: Street, person: Person) -> None:
    """Let one person ask one question and, if two answers come, choose."""
    question = person.rng.choice(street.questions)
    streamed = person.rng.random() < STREAMED_SHARE
    street.stats.requests += 1
    try:
        reply = await ask(street.client, street.model, question, person.name, streamed, street.tastes.world.manners)
        if not reply.texts.get(0):
            raise openai.OpenAIError("the answer is empty")
    except Exception as error:  # the edge of a request: a broken stream raises what its transport raises
        street.stats.record_failure(error)
        await wait_for_stop(street.stop, FAILURE_PAUSE_S)
        return
    street.stats.first_answer_at = street.stats.first_answer_at or time.time()
    valued = {
        index: person.value_answer(street.tastes, question, text, index in reply.cut)
        for index, text in reply.texts.items()
    }
    street.stats.recent_styles.extend(style for style, _ in valued.values())
    if reply.comparison is None or set(valued) != {0, 1}:
        return
    street.stats.comparisons += 1
    preferred = choose(valued[0][1], valued[1][1], street.tastes.people, person.rng, street.shuffle)
    street.stats.choices += 1
    await post_choice(street, reply.comparison, preferred)


async def post_choice(street: Street, comparison: Mapping[str, Any], preferred: str) -> bool:
    """Post a choice until it is acknowledged; the route answers a repeat as it answered first. False if refused."""
    url = f"{street.api_url}/comparisons/{comparison['id']}/choice"
    body = {"preferred": preferred, "token": comparison["token"]}
    retry_s = FIRST_RETRY_S
    while True:
        try:
            async with street.http.post(url, json=body) as response:
                status, text = response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            status, text = 503, f"{type(error).__name__}: {error}"
        if status == 200:
            now = time.time()
            street.stats.acks += 1
            street.stats.preferred[preferred] += 1
            street.history({"comparison": comparison["id"], "preferred": preferred, "acknowledged_at": now})
            return True
        if status not in RETRIED_STATUSES:
            street.stats.refused_choices += 1
            street.stats.last_error = f"choice refused with {status}: {text}"[:300]
            log.warning("%s", street.stats.last_error)
            return False
        street.stats.retried_choices += 1
        await asyncio.sleep(retry_s)
        retry_s = min(2 * retry_s, LAST_RETRY_S)


def find_api(base_url: str) -> str:
    """The OpenAI API of a gateway, whether or not its address ends in /v1."""
    return base_url.rstrip("/").removesuffix("/v1") + "/v1"


async def wait_for_stop(stop: asyncio.Event, timeout_s: float) -> None:
    """Return at the sign to stop, or after this time."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), timeout_s)


async def talk(options: argparse.Namespace, tastes: Tastes, api_key: str) -> None:
    """Run the people until a signal or until enough choices; write the stats file each second."""
    stats = resume_stats(options.stats_file, options.run)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    history_file = options.history_file or options.stats_file.with_name("people-choices.jsonl")
    history_file.parent.mkdir(parents=True, exist_ok=True)

    async def write_stats() -> None:
        while True:
            write_json(options.stats_file, stats.as_dict() | {"state": "running"})
            await asyncio.sleep(1.0)

    with history_file.open("a", encoding="utf-8") as history:

        def keep(row: dict[str, Any]) -> None:
            history.write(json.dumps(row) + "\n")
            history.flush()

        writer = asyncio.create_task(write_stats())
        try:
            await run_people(
                options.base_url,
                api_key,
                tastes,
                options.seed,
                stats,
                stop,
                model=options.model,
                concurrency=options.concurrency,
                until_choices=options.until_choices,
                pause_s=tastes.world.manners.pause_s if options.pause_s is None else options.pause_s,
                history=keep,
                is_shuffled=options.shuffle_choices,
            )
        finally:
            writer.cancel()
            write_json(options.stats_file, stats.as_dict() | {"state": "stopped"})


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ends the process if it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m prefloop.demo.people", description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8800", help="the gateway")
    parser.add_argument("--api-key-env", default="PREFLOOP_API_KEY", help="the variable that holds the API key")
    parser.add_argument("--world", type=Path, help="TOML file that says what people like")
    parser.add_argument("--taste", default=DEFAULT_TASTE, help="a shipped taste by its name, instead of a file")
    parser.add_argument("--shuffle-choices", action="store_true", help="mirror every other choice: nothing to learn")
    parser.add_argument("--check", action="store_true", help="only say which world and taste these are, as JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="default", help="the policy's alias")
    parser.add_argument("--stats-file", type=Path, default=Path("people.json"))
    parser.add_argument("--history-file", type=Path, help="acknowledged choices, JSON lines (beside the stats file)")
    parser.add_argument("--run", default="", help="a name: stats of the same run are counted on after a restart")
    parser.add_argument("--concurrency", type=int, help="people who talk at a time (the world says how many)")
    parser.add_argument("--pause-s", type=float, help="mean seconds between turns (the world says how many)")
    parser.add_argument("--until-choices", type=int, help="stop after so many acknowledged choices")
    parser.add_argument("--examine", type=Path, metavar="OUT", help="hold the final examination instead of talking")
    parser.add_argument("--seed-policy", help="examination: the seed policy's checkpoint id")
    parser.add_argument("--policy", help="examination: the promoted checkpoint's id (without it, the seed alone)")
    options = parser.parse_args(arguments)
    if options.examine and not options.seed_policy:
        parser.error("--examine needs --seed-policy")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Talk, or hold the examination; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s people %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    options = parse_options(arguments)
    try:
        path = options.world or find_tastes(options.taste)
        tastes = load_tastes(path)
    except (OSError, TastesError) as error:
        print(f"the tastes cannot be read: {error}", file=sys.stderr)
        return 2
    if options.check:
        print(json.dumps({"world": tastes.world.name, "taste": path.stem}))
        return 0
    api_key = os.environ.get(options.api_key_env, "")
    if not api_key:
        print(f"no API key in {options.api_key_env}", file=sys.stderr)
        return 2
    if not options.examine:
        asyncio.run(talk(options, tastes, api_key))
        return 0
    examination = examine(
        api_url=find_api(options.base_url),
        api_key=api_key,
        seed_policy=options.seed_policy,
        policy=options.policy,
        seed=options.seed,
        out=options.examine,
        progress_file=options.stats_file,
        world=tastes.world,
        judge=partial(judge_truly, tastes),
    )
    asyncio.run(examination)
    return 0


if __name__ == "__main__":
    sys.exit(main())
