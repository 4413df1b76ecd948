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
import re
import signal
import sys
import time
import tomllib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import openai
from openai import AsyncOpenAI

from prefloop.demo import final
from prefloop.demo.report import write_json
from prefloop.demo.world import classify, held_out_questions, people_questions

log = logging.getLogger("people")

DEFAULT_WORLD = Path(__file__).with_name("people.toml")
TEMPERATURE = 0.7
MAX_TOKENS = 48
STREAMED_SHARE = 0.5
NUM_EXAMINER_RETRIES = 12  # an examination outlasts a restart of the gateway
REQUEST_TIMEOUT_S = 120.0
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
FIRST_RETRY_S, LAST_RETRY_S = 0.2, 5.0
FAILURE_PAUSE_S = 1.0
STOP_GRACE_S = 20.0
NUM_RECENT_STYLES = 400
NUM_EXAMINED = 400  # questions of the final examination, at most

Section = TypeVar("Section", "Utilities", "Crowd")


class WorldError(ValueError):
    """The world file says something that no world has."""


@dataclass(frozen=True)
class Utilities:
    """Mean utility of an answer written in a style, and what every token of it adds."""

    complete: float = 1.0
    terse: float = 0.2
    rude: float = -1.0
    hedging: float = -0.3
    wrong: float = -2.0
    per_token: float = 0.0


@dataclass(frozen=True)
class Crowd:
    """How many people there are, and how they choose; see people.toml."""

    count: int = 200
    consistency: float = 0.8
    spread: float = 0.3
    tie_margin: float = 0.05


@dataclass(frozen=True)
class World:
    """What people like, and how they choose."""

    utilities: Utilities = field(default_factory=Utilities)
    people: Crowd = field(default_factory=Crowd)


def load_world(path: Path) -> World:
    """Read a world from a TOML file. Raises WorldError with the file's name if it cannot be understood."""
    try:
        return parse_world(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, WorldError) as error:
        raise WorldError(f"{path}: {error}") from error


def parse_world(data: Mapping[str, Any]) -> World:
    """Make a world of a parsed TOML document; what it leaves out keeps its default. Raises WorldError."""
    refuse_unknown(data, [section.name for section in fields(World)], "section")
    world = World(
        parse_section(Utilities, data.get("utilities", {}), "utilities"),
        parse_section(Crowd, data.get("people", {}), "people"),
    )
    if world.people.count < 1:
        raise WorldError("[people] count must be at least 1")
    if not 0 <= world.people.consistency <= 1:
        raise WorldError("[people] consistency is a chance, from 0 to 1")
    if world.people.spread < 0 or world.people.tie_margin < 0:
        raise WorldError("[people] spread and tie_margin must not be negative")
    return world


def parse_section(kind: type[Section], values: Any, name: str) -> Section:
    if not isinstance(values, Mapping):
        raise WorldError(f"[{name}] must be a table")
    refuse_unknown(values, [known.name for known in fields(kind)], f"key in [{name}]:")
    for key, value in values.items():
        wanted = int if key == "count" else int | float
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise WorldError(f"[{name}] {key} must be a {'whole number' if key == 'count' else 'number'}")
    return kind(**values)


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise WorldError(f"unknown {what} {', '.join(unknown)} (known: {', '.join(known)})")


def count_tokens(text: str) -> int:
    """Count words and punctuation marks: what a reader, who has no tokenizer, takes for tokens."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def judge_truly(world: World, question: str, answer: str) -> final.Judgement:
    """Return the answer's style and its true utility: the mean over people, without anyone's private taste."""
    style = classify(question, answer)
    utility = getattr(world.utilities, style) + world.utilities.per_token * count_tokens(answer)
    return final.Judgement(style, utility)


@dataclass
class Person:
    """One simulated person: a name, a private taste (added to a style's mean utility) and their own dice."""

    name: str
    taste: dict[str, float]
    rng: random.Random

    def value_answer(self, world: World, question: str, answer: str) -> tuple[str, float]:
        judged = judge_truly(world, question, answer)
        return judged.style, judged.utility + self.taste[judged.style]


def draw_people(world: World, seed: int) -> list[Person]:
    """Draw the people of a world; the same seed draws the same people, in the same order of turns."""
    people = []
    styles = [known.name for known in fields(Utilities) if known.name != "per_token"]
    for number in range(world.people.count):
        rng = random.Random(f"person-{seed}-{number}")
        taste = {style: rng.gauss(0.0, world.people.spread) for style in styles}
        people.append(Person(f"person-{number:03d}", taste, rng))
    random.Random(f"turns-{seed}").shuffle(people)
    return people


def choose(first: float, second: float, crowd: Crowd, rng: random.Random) -> str:
    """Return what a person says of two answers that they value so: first, second, tie or both_bad."""
    if abs(first - second) < crowd.tie_margin:
        return "both_bad" if first < 0 and second < 0 else "tie"
    if first == second:  # only without a tie margin
        return rng.choice(("first", "second"))
    better, worse = ("first", "second") if first > second else ("second", "first")
    return better if rng.random() < crowd.consistency else worse


@dataclass
class Stats:
    """What the people did. `requests` counts chat requests, `acks` the choices the gateway acknowledged."""

    run: str = ""
    requests: int = 0
    failed_requests: int = 0
    comparisons: int = 0
    choices: int = 0
    acks: int = 0
    refused_choices: int = 0
    retried_choices: int = 0
    first_answer_at: float | None = None
    last_error: str = ""
    preferred: Counter[str] = field(default_factory=Counter)
    recent_styles: deque[str] = field(default_factory=lambda: deque(maxlen=NUM_RECENT_STYLES))

    def as_dict(self) -> dict[str, Any]:
        plain = {known.name: getattr(self, known.name) for known in fields(self)}
        styles = Counter(self.recent_styles)
        shares = {style: round(num / len(self.recent_styles), 4) for style, num in styles.items()}
        return plain | {"preferred": dict(self.preferred), "recent_styles": shares, "updated_at": time.time()}

    def note_failure(self, error: BaseException) -> None:
        self.failed_requests += 1
        self.last_error = f"{type(error).__name__}: {error}"[:300]
        log.warning("request failed: %s", self.last_error)


def resume_stats(path: Path, run: str) -> Stats:
    """Return the counts of the same run if the people were killed and started again, else fresh ones."""
    with suppress(OSError, ValueError, AttributeError):
        saved = json.loads(path.read_text(encoding="utf-8"))
        if run and saved.get("run") == run:
            kept = {known.name: saved[known.name] for known in fields(Stats) if known.name in saved}
            kept.pop("recent_styles", None)
            return Stats(**kept | {"preferred": Counter(saved.get("preferred", {}))})
    return Stats(run=run)


@dataclass(frozen=True)
class Reply:
    """One or two answers, by display order, and the comparison they belong to."""

    texts: dict[int, str]
    comparison: Mapping[str, Any] | None


async def ask(client: AsyncOpenAI, model: str, question: str, user: str, stream: bool) -> Reply:
    """Ask as an app would: official client, two headers. Raises openai.OpenAIError after the client's retries."""
    request: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": TEMPERATURE,
        "max_tokens": MAX_TOKENS,
        "extra_headers": {"X-Prefloop-User": user, "X-Prefloop-Compare": "auto"},
    }
    if not stream:
        completion = await client.chat.completions.create(**request)
        texts = {choice.index: choice.message.content or "" for choice in completion.choices}
        return Reply(texts, (completion.model_extra or {}).get("comparison"))
    pieces: dict[int, str] = {}
    comparison = None
    async with await client.chat.completions.create(**request, stream=True) as chunks:
        async for chunk in chunks:
            for choice in chunk.choices:
                pieces[choice.index] = pieces.get(choice.index, "") + (choice.delta.content or "")
            comparison = (chunk.model_extra or {}).get("comparison") or comparison
    return Reply(pieces, comparison)


@dataclass
class Street:
    """What all people share while they talk: the connections, the world, the counts and the sign to stop."""

    client: AsyncOpenAI
    http: aiohttp.ClientSession
    api_url: str
    model: str
    world: World
    questions: Sequence[str]
    stats: Stats
    stop: asyncio.Event
    history: Callable[[dict[str, Any]], None]


async def run_people(
    base_url: str,
    api_key: str,
    world: World,
    seed: int,
    stats: Stats,
    stop: asyncio.Event,
    *,
    model: str = "default",
    concurrency: int = 24,
    until_choices: int | None = None,
    pause_s: float = 0.0,
    history: Callable[[dict[str, Any]], None] = lambda row: None,
    questions: Sequence[str] | None = None,
) -> None:
    """Let the people take turns until `stop` is set, or until `until_choices` choices are acknowledged.

    pause_s: mean seconds between two turns of one of the `concurrency` seats. A turn that has begun is finished,
    within STOP_GRACE_S seconds.
    """
    api_url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
    waiting = deque(draw_people(world, seed))
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
        asked = people_questions() if questions is None else questions
        street = Street(client, http, api_url, model, world, list(asked), stats, stop, history)
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
        reply = await ask(street.client, street.model, question, person.name, streamed)
        if not reply.texts.get(0):
            raise openai.OpenAIError("the answer is empty")
    except Exception as error:  # the edge of a request: a broken stream raises what its transport raises
        street.stats.note_failure(error)
        await wait_for_stop(street.stop, FAILURE_PAUSE_S)
        return
    street.stats.first_answer_at = street.stats.first_answer_at or time.time()
    valued = {index: person.value_answer(street.world, question, text) for index, text in reply.texts.items()}
    street.stats.recent_styles.extend(style for style, _ in valued.values())
    if reply.comparison is None or set(valued) != {0, 1}:
        return
    street.stats.comparisons += 1
    preferred = choose(valued[0][1], valued[1][1], street.world.people, person.rng)
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


async def wait_for_stop(stop: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), timeout_s)


async def talk(options: argparse.Namespace, world: World, api_key: str) -> None:
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
                world,
                options.seed,
                stats,
                stop,
                model=options.model,
                concurrency=options.concurrency,
                until_choices=options.until_choices,
                pause_s=options.pause_s,
                history=keep,
            )
        finally:
            writer.cancel()
            write_json(options.stats_file, stats.as_dict() | {"state": "stopped"})


async def examine(options: argparse.Namespace, world: World, api_key: str) -> None:
    """Hold the final examination and write its result; answers that were collected before are used again."""
    asked = list(held_out_questions())
    questions = random.Random(f"examined-{options.seed}").sample(asked, min(NUM_EXAMINED, len(asked)))
    api_url = options.base_url.rstrip("/").removesuffix("/v1") + "/v1"
    draws = [(options.seed_policy, "reference"), (options.seed_policy, "before")]
    draws += [(options.policy, "after")] if options.policy else []
    num_done = 0

    def note_answer() -> None:
        nonlocal num_done
        num_done += 1
        if num_done % 20 == 0 and options.stats_file:
            write_json(
                options.stats_file, {"state": "examining", "done": num_done, "total": len(draws) * len(questions)}
            )

    sets: dict[str, list[str]] = {}
    patient = AsyncOpenAI(
        base_url=api_url, api_key=api_key, timeout=REQUEST_TIMEOUT_S, max_retries=NUM_EXAMINER_RETRIES
    )
    async with patient as client:
        for model, draw in draws:
            kept = options.examine.with_name(f"answers-{model}-{draw}.json")
            if not kept.exists() or json.loads(kept.read_text(encoding="utf-8"))["questions"] != questions:
                name = f"{draw}-{options.seed}"
                answers = await final.collect_answers(client, model, questions, name, on_answer=note_answer)
                write_json(kept, {"questions": questions, "answers": answers})
            sets[draw] = json.loads(kept.read_text(encoding="utf-8"))["answers"]
    if "after" not in sets:
        return
    result = final.conclude(
        options.seed_policy,
        options.policy,
        questions,
        sets["reference"],
        sets["before"],
        sets["after"],
        lambda question, answer: judge_truly(world, question, answer),
        options.seed,
    )
    write_json(options.examine, result.as_dict())


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m prefloop.demo.people", description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8800", help="the gateway")
    parser.add_argument("--api-key-env", default="PREFLOOP_API_KEY", help="the variable that holds the API key")
    parser.add_argument("--world", type=Path, default=DEFAULT_WORLD, help="TOML file that says what people like")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="default", help="the policy's alias")
    parser.add_argument("--stats-file", type=Path, default=Path("state/people.json"))
    parser.add_argument("--history-file", type=Path, help="acknowledged choices, JSON lines (beside the stats file)")
    parser.add_argument("--run", default="", help="a name: stats of the same run are counted on after a restart")
    parser.add_argument("--concurrency", type=int, default=24, help="people who talk at a time")
    parser.add_argument("--pause-s", type=float, default=0.0, help="mean seconds between turns")
    parser.add_argument("--until-choices", type=int, help="stop after so many acknowledged choices")
    parser.add_argument("--examine", type=Path, metavar="OUT", help="hold the final examination instead of talking")
    parser.add_argument("--seed-policy", help="examination: the seed policy's checkpoint id")
    parser.add_argument("--policy", help="examination: the promoted checkpoint's id (without it, the seed alone)")
    options = parser.parse_args(arguments)
    if options.examine and not options.seed_policy:
        parser.error("--examine needs --seed-policy")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s people %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    options = parse_options(arguments)
    api_key = os.environ.get(options.api_key_env, "")
    if not api_key:
        print(f"no API key in {options.api_key_env}", file=sys.stderr)
        return 2
    try:
        world = load_world(options.world)
    except (OSError, WorldError) as error:
        print(f"the world cannot be read: {error}", file=sys.stderr)
        return 2
    asyncio.run((examine if options.examine else talk)(options, world, api_key))
    return 0


if __name__ == "__main__":
    sys.exit(main())
