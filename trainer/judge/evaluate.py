"""The offline gate: what a checkpoint must pass before any traffic, and whether choices hold anything to learn.

Judges the `policy` adapter beside `stable` on frozen prompts that no round trains on. Without a frozen set (a foreign model) the
checks that need one are left out and named in the verdict; with nothing to judge by at all nothing passes. Does not judge by
live choices: the rollout does.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch

from trainer.learn.reward import RewardModel
from trainer.model.stack import Messages, PolicyStack
from trainer.text.transcript import flatten_messages

log = logging.getLogger("trainer.judge.evaluate")


@dataclass(frozen=True)
class EvaluateSettings:
    """Budgets of the offline gate; shares are 0 to 1, KL in nats per answer."""

    samples_per_prompt: int = 4
    max_tokens: int = 48
    temperature: float = 0.7
    max_fact_drop: float = 0.05
    max_reference_drop: float = 0.02
    max_perplexity_ratio: float = 1.5
    max_unfinished_rise: float = 0.05
    max_length_ratio: float = 4.0
    max_kl: float = 40.0
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class FrozenRow:
    """A prompt, the fact a right answer states, and all its well-formed right answers."""

    messages: Messages
    fact: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class FrozenSets:
    """Rows with facts and references; `prompts` alone serve where there are none. path: where rows may be added."""

    rows: tuple[FrozenRow, ...] = ()
    prompts: tuple[Messages, ...] = ()
    path: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether the checkpoint may see traffic, the reason in words, and every figure behind it."""

    ok: bool
    reason: str
    metrics: dict[str, float] = field(default_factory=dict)


def load_frozen_sets(path: str | Path, prompts: Sequence[Messages] = ()) -> FrozenSets:
    """Reads JSONL rows {messages, fact, references}; where there are none, `prompts` serve.

    A line of another form is logged and left out.
    """
    file = Path(path)
    lines = file.read_bytes().splitlines() if file.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_read_frozen_row(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            log.warning("%s, line %d is left out: %s: %s", file, number, type(error).__name__, error)
    return FrozenSets(tuple(rows), tuple(prompts), str(file))


def _read_frozen_row(row: dict[str, Any]) -> FrozenRow:
    messages, fact, references = flatten_messages(row["messages"]), row["fact"], tuple(row["references"])
    if not isinstance(fact, str) or not references or not all(isinstance(each, str) for each in references):
        raise ValueError("it needs a fact and references, all of them text")
    return FrozenRow(messages, fact, references)


def keep_usable(stack: PolicyStack, frozen: FrozenSets, settings: EvaluateSettings) -> FrozenSets:
    """The rows and prompts that the policy can read whole, with an answer of max_tokens behind each."""

    def is_usable(messages: Messages, answers: Sequence[str]) -> bool:
        try:
            is_short = len(stack.encode_prompt(messages)) + settings.max_tokens < stack.max_length
            return is_short and all(stack.encode(messages, answer) for answer in answers)
        except Exception as error:  # templates and tokenizers raise what they like
            log.warning("a prompt of the offline gate is left out: %s", error)
            return False

    rows = tuple(row for row in frozen.rows if is_usable(row.messages, row.references))
    return replace(frozen, rows=rows, prompts=tuple(prompt for prompt in frozen.prompts if is_usable(prompt, ())))


def log_evidence(correct: int, total: int) -> float:
    """Log e-value of a uniform mixture over accuracies against fair coin flips: E = 2^n B(k + 1, n - k + 1)."""
    beta = math.lgamma(correct + 1) + math.lgamma(total - correct + 1) - math.lgamma(total + 2)
    return total * math.log(2) + beta


def something_to_learn(
    correct: int, total: int, foreseen: tuple[int, int] = (0, 0), alpha: float = 0.02
) -> tuple[bool, str]:
    """Whether choices can be foreseen better than by a coin, however often one has looked.

    correct of total: the held-out choices. foreseen: (correct, total) of the choices that were guessed before they were learnt
    from. Each takes half of alpha: by Ville's inequality an e-value passes 2/alpha in at most a share alpha/2 of worlds where
    choices are noise, all looks together.
    """
    findings = []
    for (k, n), name in (((correct, total), "held-out"), (foreseen, "new")):
        if n == 0:
            continue
        findings.append(f"{k} of {n} {name} choices foreseen ({k / n:.0%})")
        if 2 * k > n and log_evidence(k, n) >= math.log(2 / alpha):
            return True, f"{findings[-1]}, better than chance"
    if not findings:
        return False, "nothing to learn: no decisive choice to judge by yet"
    return False, f"nothing to learn: {', '.join(findings)}, not clearly better than chance"


def interval_of_mean(values: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Mean with its normal interval; values are independent (average within a prompt first)."""
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / max(1, n - 1)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance / n)
    return mean, mean - half, mean + half


def measure_references(
    stack: PolicyStack, rows: Sequence[FrozenRow], adapter: str, settings: EvaluateSettings
) -> dict[str, float]:
    """Chance of one of the right answers word for word, at the serving temperature (exact, not sampled), and perplexity.

    The perplexity is that of the reference the policy itself finds likeliest: styles may change, words must not break.
    """
    encoded = [stack.encode(row.messages, reference) for row in rows for reference in row.references]
    sums, counts = stack.answer_logprobs(encoded, adapter, temperature=settings.temperature)
    groups = torch.split(sums, [len(row.references) for row in rows])
    lengths = torch.split(counts, [len(row.references) for row in rows])
    mass = torch.stack([torch.logsumexp(group, 0).exp() for group in groups]).mean()
    best = [(g / n).max() for g, n in zip(groups, lengths, strict=True)]
    return {"references": mass.item(), "perplexity": torch.stack(best).mean().neg().exp().item()}


def measure_samples(
    stack: PolicyStack, prompts: Sequence[Messages], rows: Sequence[FrozenRow], adapter: str, settings: EvaluateSettings
) -> tuple[dict[str, float], list[str]]:
    """Samples answers; facts stated, length, unfinished share. `rows` is empty where facts are unknown."""
    times = settings.samples_per_prompt
    answers = stack.generate(
        [p for p in prompts for _ in range(times)], adapter, settings.max_tokens, settings.temperature, settings.seed
    )
    lengths = [len(stack.tokenizer(answer, add_special_tokens=False).input_ids) for answer in answers]
    measured = {
        "tokens": sum(lengths) / len(lengths),
        "unfinished": sum(length >= settings.max_tokens for length in lengths) / len(lengths),
    }
    if rows:
        facts = [row.fact for row in rows for _ in range(times)]
        measured["facts"] = sum(fact in answer for fact, answer in zip(facts, answers, strict=True)) / len(answers)
    return measured, answers


def measure_kl(stack: PolicyStack, prompts: Sequence[Messages], answers: Sequence[str], other: str | None) -> float:
    """Monte Carlo KL(policy || other) in nats per answer, over the policy's own samples."""
    rows = [stack.encode(prompt, answer, cut=True) for prompt, answer in zip(prompts, answers, strict=True)]
    return (stack.answer_logprobs(rows, "policy")[0] - stack.answer_logprobs(rows, other)[0]).mean().item()


def find_failure(metrics: dict[str, float], settings: EvaluateSettings) -> str:
    """The first budget that is broken, in words; empty if none is. Figures that were not measured break nothing."""
    policy, stable = (
        {key.removeprefix(f"{arm}_"): value for key, value in metrics.items() if key.startswith(f"{arm}_")}
        for arm in ("policy", "stable")
    )
    if not all(math.isfinite(value) for value in metrics.values()):
        return "a figure is not finite"
    if "facts" in policy and policy["facts"] < stable["facts"] - settings.max_fact_drop:
        return f"facts fell from {stable['facts']:.0%} to {policy['facts']:.0%}"
    if "references" in policy and policy["references"] < stable["references"] - settings.max_reference_drop:
        return f"well-formed right answers fell from {stable['references']:.0%} to {policy['references']:.0%}"
    if "perplexity" in policy and policy["perplexity"] > stable["perplexity"] * settings.max_perplexity_ratio:
        return f"perplexity on the anchor set rose from {stable['perplexity']:.2f} to {policy['perplexity']:.2f}"
    if policy["unfinished"] > stable["unfinished"] + settings.max_unfinished_rise:
        return f"unfinished answers rose from {stable['unfinished']:.0%} to {policy['unfinished']:.0%}"
    if policy["tokens"] > stable["tokens"] * settings.max_length_ratio or policy["tokens"] < 1:
        return f"answers of {policy['tokens']:.1f} tokens, {stable['tokens']:.1f} before"
    if metrics["kl_base"] > settings.max_kl:
        return f"KL to the base is {metrics['kl_base']:.1f} nats an answer"
    if metrics["reward_gain_low"] <= 0:
        return (
            f"reward gain {metrics['reward_gain']:+.2f} is not clearly above 0 (from {metrics['reward_gain_low']:+.2f})"
        )
    return ""


def judge_policy(
    stack: PolicyStack, reward: RewardModel, frozen: FrozenSets, settings: EvaluateSettings | None = None
) -> Verdict:
    """Measures `policy` and `stable` and compares them. Leaves the adapters as they are."""
    settings = settings or EvaluateSettings()
    frozen = keep_usable(stack, frozen, settings)
    prompts = [row.messages for row in frozen.rows] or list(frozen.prompts)
    if not prompts:
        form = '{"messages": […], "fact": "…", "references": ["…"]}'
        return Verdict(
            False,
            f"cannot be judged: no frozen set and no held-out prompt; add a set as lines of {form} to {frozen.path}",
        )
    metrics: dict[str, float] = {}
    answers: dict[str, list[str]] = {}
    for arm in ("stable", "policy"):
        measured, answers[arm] = measure_samples(stack, prompts, frozen.rows, arm, settings)
        if frozen.rows:
            measured.update(measure_references(stack, frozen.rows, arm, settings))
        metrics.update({f"{arm}_{name}": value for name, value in measured.items()})
    repeated = [prompt for prompt in prompts for _ in range(settings.samples_per_prompt)]
    metrics["kl_base"] = measure_kl(stack, repeated, answers["policy"], None)
    metrics["kl_stable"] = measure_kl(stack, repeated, answers["policy"], "stable")
    gains = reward.score(repeated, answers["policy"]).cautious - reward.score(repeated, answers["stable"]).cautious
    by_prompt = gains.view(len(prompts), -1).mean(1).tolist()
    mean, low, high = interval_of_mean(by_prompt, settings.confidence)
    metrics.update({"reward_gain": mean, "reward_gain_low": low, "reward_gain_high": high})
    failure = find_failure(metrics, settings)
    missing = "" if frozen.rows else "; facts and anchor perplexity not available"
    return Verdict(
        not failure, (failure or f"passed: reward gain {mean:+.2f} ({low:+.2f} to {high:+.2f})") + missing, metrics
    )
