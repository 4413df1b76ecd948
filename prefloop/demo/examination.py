"""The final examination: a policy's fresh answers beside fresh seed-policy answers, by the people's true taste.

Asks each checkpoint by its id through the gateway (an operator's key), on questions that no person ever asks. A win is
a higher true utility, a tie is half; the interval is Wilson's 95%. Knows no taste itself: the caller passes it in.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from prefloop.demo.report import write_json
from prefloop.demo.world import held_out_questions

NORMAL_QUANTILE_975 = 1.959963984540054
TEMPERATURE = 0.7
MAX_TOKENS = 48
RELATIVE_TOLERANCE = 1e-9
NUM_QUESTIONS = 400  # at most
NUM_RETRIES = 12  # an examination outlasts a restart of the gateway
REQUEST_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Share:
    """A share of `n` trials with its 95% interval, all between 0 and 1."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Judgement:
    """What the people hold of one answer: its style, and its true (mean) utility."""

    style: str
    utility: float


Judge = Callable[[str, str], Judgement]  # (question, answer) -> judgement


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
    """What people got before (the seed policy against itself) and after (the policy against the seed policy)."""

    seed_policy: str
    policy: str
    win_rate_before: Share
    win_rate_after: Share
    wrong_rate_before: float
    wrong_rate_after: float
    examples: list[Example]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def wilson_interval(num_wins: float, n: int, z: float = NORMAL_QUANTILE_975) -> Share:
    """Return the share of wins with Wilson's score interval (Wilson 1927, eq. 4); halves count as halves of a win.

    Raises ValueError if there is no trial, or more wins than trials.
    """
    if n <= 0 or not 0 <= num_wins <= n:
        raise ValueError(f"{num_wins} wins in {n} trials is no share")
    share = num_wins / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Share(share, max(0.0, centre - half_width), min(1.0, centre + half_width), n)


def score_pair(answer: float, reference: float) -> float:
    """Return 1 for the higher utility, 0 for the lower, one half where they are equal."""
    if math.isclose(answer, reference, rel_tol=RELATIVE_TOLERANCE, abs_tol=RELATIVE_TOLERANCE):
        return 0.5
    return 1.0 if answer > reference else 0.0


def measure_win_rate(answers: Sequence[Judgement], references: Sequence[Judgement]) -> Share:
    """Return the share of questions on which the answer beats the reference to the same question."""
    pairs = zip(answers, references, strict=True)
    return wilson_interval(sum(score_pair(a.utility, r.utility) for a, r in pairs), len(answers))


def measure_wrong_rate(answers: Sequence[Judgement]) -> float:
    """Return the share of answers that are wrong, garble included."""
    return sum(answer.style == "wrong" for answer in answers) / len(answers)


def judge_all(judge: Judge, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
    """One judgement for every question's answer."""
    return [judge(question, answer) for question, answer in zip(questions, answers, strict=True)]


def pick_examples(
    questions: Sequence[str], before: Sequence[str], after: Sequence[str], judge: Judge, seed: int, num: int = 3
) -> list[Example]:
    """Return `num` questions side by side, drawn at random: the best ones would flatter the policy."""
    drawn = random.Random(f"examples-{seed}").sample(range(len(questions)), min(num, len(questions)))
    examples = []
    for i in drawn:
        old, new = judge(questions[i], before[i]), judge(questions[i], after[i])
        examples.append(Example(questions[i], before[i], after[i], old.style, new.style, old.utility, new.utility))
    return examples


def conclude(
    seed_policy: str,
    policy: str,
    questions: Sequence[str],
    references: Sequence[str],
    before: Sequence[str],
    after: Sequence[str],
    judge: Judge,
    seed: int,
) -> FinalResult:
    """Compare three sets of answers: the seed policy's reference, its second draw, and the policy's."""
    judged_references = judge_all(judge, questions, references)
    judged_before = judge_all(judge, questions, before)
    judged_after = judge_all(judge, questions, after)
    return FinalResult(
        seed_policy=seed_policy,
        policy=policy,
        win_rate_before=measure_win_rate(judged_before, judged_references),
        win_rate_after=measure_win_rate(judged_after, judged_references),
        wrong_rate_before=measure_wrong_rate(judged_before),
        wrong_rate_after=measure_wrong_rate(judged_after),
        examples=pick_examples(questions, before, after, judge, seed),
    )


async def collect_answers(
    client: AsyncOpenAI,
    model: str,
    questions: Sequence[str],
    draw: str,
    *,
    concurrency: int = 16,
    on_answer: Callable[[], None] = lambda: None,
) -> list[str]:
    """Ask `model` every question once and return the answers in the questions' order.

    draw: names this set of answers; every question gets its own sampling seed from it, so two draws are independent.
    Raises openai.OpenAIError if the gateway does not serve `model` or a request fails after the client's retries.
    """
    turns = asyncio.Semaphore(concurrency)

    async def ask(question: str) -> str:
        async with turns:
            completion = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                temperature=TEMPERATURE,
                max_tokens=MAX_TOKENS,
                seed=random.Random(f"{draw}\n{question}").getrandbits(31),
                extra_headers={"X-Prefloop-User": "final-evaluation", "X-Prefloop-Compare": "never"},
            )
        on_answer()
        return completion.choices[0].message.content or ""

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(question)) for question in questions]
    return [task.result() for task in tasks]


async def examine(
    *, api_url: str, api_key: str, seed_policy: str, policy: str | None, seed: int, out: Path, progress_file: Path,
    judge: Judge,
) -> None:  # fmt: skip
    """Hold the examination and write its result to `out`; answers that were collected before are used again.

    Without a policy only the seed policy's answers are collected, for a later examination in the same directory.
    """
    asked = list(held_out_questions())
    questions = random.Random(f"examined-{seed}").sample(asked, min(NUM_QUESTIONS, len(asked)))
    draws = [(seed_policy, "reference"), (seed_policy, "before"), *([(policy, "after")] if policy else [])]
    num_done = 0

    def count_answer() -> None:
        nonlocal num_done
        num_done += 1
        if num_done % 20 == 0:
            write_json(progress_file, {"state": "examining", "done": num_done, "total": len(draws) * len(questions)})

    sets: dict[str, list[str]] = {}
    async with AsyncOpenAI(
        base_url=api_url, api_key=api_key, timeout=REQUEST_TIMEOUT_S, max_retries=NUM_RETRIES
    ) as client:
        for model, draw in draws:
            kept = out.with_name(f"answers-{model}-{draw}.json")
            if not kept.exists() or json.loads(kept.read_text(encoding="utf-8"))["questions"] != questions:
                answers = await collect_answers(client, model, questions, f"{draw}-{seed}", on_answer=count_answer)
                write_json(kept, {"questions": questions, "answers": answers})
            sets[draw] = json.loads(kept.read_text(encoding="utf-8"))["answers"]
    if policy:
        reference, before, after = (sets[draw] for draw in ("reference", "before", "after"))
        write_json(out, conclude(seed_policy, policy, questions, reference, before, after, judge, seed).as_dict())
