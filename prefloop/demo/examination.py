"""The final examination: a policy's fresh answers beside fresh seed-policy answers, by the people's true taste.

Asks each checkpoint by its id through the gateway (an operator's key), on questions that no person ever asks. A win is
a higher true utility, a tie is half; wins hang together by fact or topic, so intervals are clustered. Knows no taste
itself: the caller passes it in.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from prefloop.demo.intervals import Share, measure_share, score_pair
from prefloop.demo.report import write_json
from prefloop.demo.worlds.text import FAULTS
from prefloop.demo.worlds.world import Manners, World

NUM_QUESTIONS = 400  # at most
NUM_RETRIES = 12  # an examination outlasts a restart of the gateway
REQUEST_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Answer:
    """What a policy said. is_cut: it ended at the token limit."""

    text: str
    is_cut: bool = False


@dataclass(frozen=True)
class Judgement:
    """What the people hold of one answer: its style, and its true (mean) utility."""

    style: str
    utility: float


Judge = Callable[[str, str, bool], Judgement]  # (question, answer, is_cut) -> judgement


@dataclass(frozen=True)
class Example:
    """One held-out question with the seed policy's answer and the examined policy's answer."""

    question: str
    before: str
    after: str
    before_style: str
    after_style: str
    before_utility: float
    after_utility: float


@dataclass(frozen=True)
class FinalResult:
    """What people got before (the seed policy against itself) and after (the policy against the seed policy).

    wrong_rate: None in a world where nobody can tell. degenerate: the share of answers with each fault, and with `any`.
    by_family: win rates after, of each family of questions.
    """

    seed_policy: str
    policy: str
    win_rate_before: Share
    win_rate_after: Share
    wrong_rate_before: float | None
    wrong_rate_after: float | None
    degenerate_before: dict[str, float]
    degenerate_after: dict[str, float]
    by_family: dict[str, Share]
    examples: list[Example]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Draw:
    """One set of answers to the questions, with what people hold of each."""

    answers: list[Answer]
    judged: list[Judgement]


def measure_win_rate(answers: Sequence[Judgement], references: Sequence[Judgement], clusters: Sequence[str]) -> Share:
    """Return the share of questions on which the answer beats the reference to the same question."""
    pairs = zip(answers, references, strict=True)
    return measure_share([score_pair(a.utility, r.utility) for a, r in pairs], clusters)


def measure_wrong_rate(world: World, answers: Sequence[Judgement]) -> float | None:
    """Return the share of answers that are wrong, garble included; None in a world that cannot tell."""
    if "wrong" not in world.default_utilities:
        return None
    return sum(answer.style == "wrong" for answer in answers) / len(answers)


def measure_degenerate(world: World, questions: Sequence[str], answers: Sequence[Answer]) -> dict[str, float]:
    """Return the share of answers with each fault that the world knows, and with any."""
    faults = [world.find_faults(q, a.text, a.is_cut) for q, a in zip(questions, answers, strict=True)]
    counts = Counter(name for found in faults for name in found)
    shares = {name: counts[name] / len(faults) for name in FAULTS}
    return {"any": sum(bool(found) for found in faults) / len(faults), **shares}


def judge_all(judge: Judge, questions: Sequence[str], answers: Sequence[Answer]) -> Draw:
    """One judgement for every question's answer."""
    return Draw(list(answers), [judge(q, a.text, a.is_cut) for q, a in zip(questions, answers, strict=True)])


def pick_examples(questions: Sequence[str], before: Draw, after: Draw, seed: int, num: int = 3) -> list[Example]:
    """Return `num` questions side by side, drawn at random: the best ones would flatter the policy."""
    examples = []
    for i in random.Random(f"examples-{seed}").sample(range(len(questions)), min(num, len(questions))):
        old, new = before.judged[i], after.judged[i]
        texts = before.answers[i].text, after.answers[i].text
        examples.append(Example(questions[i], *texts, old.style, new.style, old.utility, new.utility))
    return examples


def conclude(
    world: World,
    seed_policy: str,
    policy: str,
    questions: Sequence[str],
    sets: Mapping[str, Sequence[Answer]],
    judge: Judge,
    seed: int,
) -> FinalResult:
    """Compare three sets of answers: the seed policy's `reference`, its second draw `before`, and the policy's `after`."""
    reference, before, after = (judge_all(judge, questions, sets[name]) for name in ("reference", "before", "after"))
    families, clusters = zip(*(world.describe_question(question) for question in questions), strict=True)
    by_family = {}
    for family in dict.fromkeys(families):
        rows = [i for i, name in enumerate(families) if name == family]
        answers, references = ([draw.judged[i] for i in rows] for draw in (after, reference))
        by_family[family] = measure_win_rate(answers, references, [clusters[i] for i in rows])
    return FinalResult(
        seed_policy=seed_policy,
        policy=policy,
        win_rate_before=measure_win_rate(before.judged, reference.judged, clusters),
        win_rate_after=measure_win_rate(after.judged, reference.judged, clusters),
        wrong_rate_before=measure_wrong_rate(world, before.judged),
        wrong_rate_after=measure_wrong_rate(world, after.judged),
        degenerate_before=measure_degenerate(world, questions, before.answers),
        degenerate_after=measure_degenerate(world, questions, after.answers),
        by_family=by_family,
        examples=pick_examples(questions, before, after, seed),
    )


async def collect_answers(
    client: AsyncOpenAI,
    model: str,
    questions: Sequence[str],
    draw: str,
    manners: Manners,
    *,
    on_answer: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Ask `model` every question once and return the answers in the questions' order.

    draw: names this set of answers; every question gets its own sampling seed from it, so two draws are independent.
    Raises openai.OpenAIError if the gateway does not serve `model` or a request fails after the client's retries.
    """
    turns = asyncio.Semaphore(manners.examined_concurrency)

    async def ask(question: str) -> Answer:
        async with turns:
            completion = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                temperature=manners.temperature,
                max_tokens=manners.examined_max_tokens,
                seed=random.Random(f"{draw}\n{question}").getrandbits(31),
                extra_headers={"X-Prefloop-User": "final-evaluation", "X-Prefloop-Compare": "never"},
            )
        on_answer()
        said = completion.choices[0]
        return Answer(said.message.content or "", said.finish_reason == "length")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(question)) for question in questions]
    return [task.result() for task in tasks]


async def examine(
    *, api_url: str, api_key: str, seed_policy: str, policy: str | None, seed: int, out: Path, progress_file: Path,
    world: World, judge: Judge,
) -> None:  # fmt: skip
    """Hold the examination and write its result to `out`; answers that were collected before are used again.

    Without a policy only the seed policy's answers are collected, for a later examination in the same directory.
    """
    asked = world.held_out_questions()
    questions = random.Random(f"examined-{seed}").sample(asked, min(NUM_QUESTIONS, len(asked)))
    draws = [(seed_policy, "reference"), (seed_policy, "before"), *([(policy, "after")] if policy else [])]
    num_done = 0

    def count_answer() -> None:
        nonlocal num_done
        num_done += 1
        if num_done % 20 == 0:
            write_json(progress_file, {"state": "examining", "done": num_done, "total": len(draws) * len(questions)})

    sets: dict[str, list[Answer]] = {}
    async with AsyncOpenAI(
        base_url=api_url, api_key=api_key, timeout=REQUEST_TIMEOUT_S, max_retries=NUM_RETRIES
    ) as client:
        for model, draw in draws:
            kept = out.with_name(f"answers-{model}-{draw}.json")
            if not kept.exists() or json.loads(kept.read_text(encoding="utf-8"))["questions"] != questions:
                answers = await collect_answers(
                    client, model, questions, f"{draw}-{seed}", world.manners, on_answer=count_answer
                )
                write_json(kept, {"questions": questions, "answers": [asdict(answer) for answer in answers]})
            sets[draw] = [Answer(**row) for row in json.loads(kept.read_text(encoding="utf-8"))["answers"]]
    if policy:
        write_json(out, conclude(world, seed_policy, policy, questions, sets, judge, seed).as_dict())
