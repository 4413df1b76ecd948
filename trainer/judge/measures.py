"""The figures of a candidate beside stable: what both sampled for the same prompts, and how both score given texts.

Every figure is a difference paired by prompt, with its error, over all prompts and over each slice that has enough of
them. Does not decide: gate does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from feedback.refusals import refuses
from trainer.judge import frozen
from trainer.judge.answers import HarmScreen, is_copied, is_looping, is_short
from trainer.judge.frozen import FrozenRow
from trainer.learn.hearing import Hear, hear_part, ignore_share
from trainer.learn.sampling.sampler import Sampled, Sampler, SamplingParameters, SamplingRequest
from trainer.math.intervals import Estimate, estimate_mean, estimate_over_draws
from trainer.text.messages import flatten_content
from trainer.text.pairs import Prompt
from trainer.text.transcript import EncodedAnswer

if TYPE_CHECKING:
    from torch import Tensor

HELDOUT = "heldout"
LIKELIHOOD = "likelihood"  # of demonstrations
Values = Sequence[float | None]
"""One value for each sampled answer, in the order of the prompts; None where the figure does not apply."""
Checkers = Mapping[str, Callable[[str], float]]


class Scores(Protocol):
    """draws: (answers, K)."""

    @property
    def draws(self) -> Tensor: ...


class Scorer(Protocol):
    """A reward model, or the auditor."""

    def score(self, answers: Sequence[EncodedAnswer], texts: Sequence[str]) -> Scores: ...


@dataclass(frozen=True)
class Asked:
    """A prompt that both policies answer; row is None for a held-out prompt. is_other: the second prompt of a bias row."""

    prompt: Prompt
    row: FrozenRow | None = None
    is_other: bool = False

    @property
    def kind(self) -> str:
        return self.row.kind if self.row else HELDOUT

    @property
    def question(self) -> str:
        """What the last message says."""
        return flatten_content(self.prompt.messages[-1].get("content"))


@dataclass(frozen=True)
class Figure:
    """What was measured of both, over a slice ("" is all): means over prompts, and candidate minus stable.

    is_heldout: all of it is over held-out prompts, and enough of them for a slice.
    """

    name: str
    candidate: float
    stable: float
    change: Estimate
    slice: str = ""
    is_heldout: bool = False


@dataclass(frozen=True)
class Figures:
    """kl_base, kl_stable: nats an answer. missing: what could not be measured, in words. source: who sampled."""

    rows: tuple[Figure, ...] = ()
    kl_base: float = math.nan
    kl_stable: float = math.nan
    num_prompts: int = 0
    missing: tuple[str, ...] = ()
    source: str = ""

    def get(self, name: str, part: str = "") -> Figure | None:
        return next((row for row in self.rows if row.name == name and row.slice == part), None)

    def as_dict(self) -> dict[str, float]:
        """Every finite number under a name of its own: policy_facts, stable_facts, facts_change, facts_change_error …

        policy_…[kind=heldout] is there also where everything is held out, so that there is no such slice.
        """
        numbers = {"kl_base": self.kl_base, "kl_stable": self.kl_stable, "num_prompts": float(self.num_prompts)}
        for row in self.rows:
            name = f"{row.name}[{row.slice}]" if row.slice else row.name
            numbers[f"policy_{name}"], numbers[f"stable_{name}"] = row.candidate, row.stable
            numbers[f"{name}_change"], numbers[f"{name}_change_error"] = row.change.mean, row.change.std_error
            if row.is_heldout:
                numbers[f"policy_{row.name}[kind={HELDOUT}]"] = row.candidate
        return {name: number for name, number in numbers.items() if math.isfinite(number)}


@dataclass(frozen=True)
class Example:
    """A prompt with one answer of each policy, for a round's report."""

    question: str
    stable: str
    candidate: str


def list_asked(rows: Sequence[FrozenRow], heldout: Sequence[Prompt]) -> list[Asked]:
    """Everything both policies are asked: held-out prompts, and frozen rows but for anchors, which are scored alone."""
    asked = [Asked(prompt) for prompt in heldout]
    for row in rows:
        if row.kind == "anchor":
            continue
        asked.append(Asked(row.prompt, row))
        if row.other is not None:
            asked.append(Asked(row.other, row, is_other=True))
    return asked


def sample_answers(
    sampler: Sampler,
    asked: Sequence[Asked],
    adapter: str | None,
    parameters: SamplingParameters,
    n: int,
    seed: int,
    hear: Hear = ignore_share,
) -> list[Sampled]:
    """n answers to each prompt, prompt by prompt. A frozen row may allow fewer tokens than the app does. hear: of all of them."""
    by_limit: dict[int, list[int]] = {}
    for i, each in enumerate(asked):
        limit = min(parameters.max_tokens, (each.row and each.row.max_tokens) or parameters.max_tokens)
        by_limit.setdefault(limit, []).append(i)
    answers: list[list[Sampled]] = [[] for _ in asked]
    for limit, places in sorted(by_limit.items()):
        limited = replace(parameters, max_tokens=limit)
        part = hear_part(hear, sum(map(bool, answers)) / len(asked), len(places) / len(asked))
        prompts = [asked[i].prompt for i in places]
        sampled = sampler.sample(SamplingRequest(prompts, adapter, n, limited, seed + limit, part))
        for i, mine in zip(places, sampled, strict=True):
            answers[i] = mine
    return [each for mine in answers for each in mine]


def compare(name: str, asked: Sequence[Asked], candidate: Values, stable: Values, min_slice: int) -> list[Figure]:
    """A figure over all prompts and over every slice with at least min_slice of them; none where nothing applies."""
    n = len(candidate) // len(asked)
    differences: list[tuple[Asked, float, float]] = []
    for i, each in enumerate(asked):
        new = [value for value in candidate[i * n : (i + 1) * n] if value is not None]
        old = [value for value in stable[i * n : (i + 1) * n] if value is not None]
        if new and old:
            differences.append((each, math.fsum(new) / len(new), math.fsum(old) / len(old)))
    figures = []
    is_heldout = len(differences) >= min_slice and all(each.kind == HELDOUT for each, _, _ in differences)
    for part, members in _slice([each for each, _, _ in differences], min_slice):
        mine = [differences[i] for i in members]
        change = estimate_mean(
            [new - old for _, new, old in mine], [each.prompt.key or id(each) for each, _, _ in mine]
        )
        number = len(mine)
        figures.append(
            Figure(
                name, math.fsum(new for _, new, _ in mine) / number, math.fsum(old for *_, old in mine) / number,
                change, part, is_heldout=is_heldout and not part,
            )
        )  # fmt: skip
    return figures


def _slice(asked: Sequence[Asked], min_slice: int) -> list[tuple[str, list[int]]]:
    """("", all) and (tag=value, its places) of every slice that is large enough and is not everything."""
    slices: dict[str, list[int]] = {}
    for i, each in enumerate(asked):
        for tag, value in {"kind": each.kind, **each.prompt.tags}.items():
            slices.setdefault(f"{tag}={value}", []).append(i)
    everything = [("", list(range(len(asked))))] if asked else []
    return everything + [(name, of) for name, of in sorted(slices.items()) if min_slice <= len(of) < len(asked)]


def measure_answer(each: Asked, sampled: Sampled, harm: HarmScreen, checkers: Checkers) -> dict[str, float]:
    """What can be said of one answer without a model; names that do not apply are left out."""
    answer, row = sampled.answer, each.row
    text = answer.text
    is_right = False
    values = {"harm": float(harm.is_harmful(text)), "looping": float(is_looping(text))}
    if row is None or not row.max_tokens:  # a frozen row's own limit says nothing of how long people's answers are
        values["tokens"] = float(len(answer.ids or ()) - answer.is_finished)
        values["unfinished"] = float(not answer.is_finished)
    if row is not None and row.kind == "fact":
        is_right = frozen.states_fact(text, row.accepted)
        values["facts"] = float(is_right)
    elif row is not None and row.kind == "task":
        is_right = frozen.passes_task(row, text, checkers)
        values["tasks"] = float(is_right)
    elif row is not None and row.kind == "redteam":
        values["attacks"] = float(frozen.attack_succeeds(row, text))
    elif row is not None and row.kind == "demonstration":
        values |= compare_texts(text, row.references)
    values["copied"] = float(is_copied(each.question, text) and not is_right)
    values["short"] = float(is_short(text) and not is_right)  # a right answer may be one word
    if each.kind != "redteam":
        values["refusals"] = float(refuses(text))
    return values


def compare_texts(text: str, references: Sequence[str]) -> dict[str, float]:
    """BLEU (sacrebleu, sentence level, effective order) and ROUGE-L against the best of the references, both 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import sentence_bleu

    rouge = RougeScorer(["rougeL"]).score_multi(list(references), text)["rougeL"].fmeasure
    return {"bleu": sentence_bleu(text, list(references)).score / 100, "rouge_l": float(rouge)}


def compare_answers(
    asked: Sequence[Asked],
    candidate: Sequence[Sampled],
    stable: Sequence[Sampled],
    harm: HarmScreen,
    checkers: Checkers,
    min_slice: int,
) -> list[Figure]:
    """All figures that need no model."""
    n = len(candidate) // len(asked)
    arms = [
        [measure_answer(asked[i // n], sampled, harm, checkers) for i, sampled in enumerate(answers)]
        for answers in (candidate, stable)
    ]
    names = list(dict.fromkeys(name for measured in arms[0] for name in measured))
    figures: list[Figure] = []
    for name in names:
        new, old = ([measured.get(name) for measured in arm] for arm in arms)
        figures += compare(name, asked, new, old, min_slice)
    return figures + compare_bias_samples(asked, arms[0], arms[1], min_slice)


def compare_bias_samples(
    asked: Sequence[Asked], candidate: Sequence[dict[str, float]], stable: Sequence[dict[str, float]], min_slice: int
) -> list[Figure]:
    """How differently the two prompts of a bias row are refused, and how differently long their answers are (log)."""
    n = len(candidate) // len(asked)
    firsts = [i for i, each in enumerate(asked) if each.kind == "bias" and not each.is_other]
    if not firsts:
        return []

    def differ(arm: Sequence[dict[str, float]], name: str, read: Callable[[float], float]) -> list[float]:
        def mean(i: int) -> float:
            return math.fsum(read(values.get(name, 0.0)) for values in arm[i * n : (i + 1) * n]) / n

        return [abs(mean(i) - mean(i + 1)) for i in firsts]

    rows = [asked[i] for i in firsts]
    figures = []
    for shown, name, read in (("bias_refusals", "refusals", float), ("bias_length", "tokens", math.log1p)):
        new, old = differ(candidate, name, read), differ(stable, name, read)
        figures += compare(shown, rows, new, old, min_slice)
    return figures


def compare_scores(
    name: str, asked: Sequence[Asked], candidate: Scores, stable: Scores, min_slice: int
) -> list[Figure]:
    """The mean difference of scores, taken within each draw, over draws and prompts; red-team rows are no one's wish."""
    kept = [i for i, each in enumerate(asked) if each.kind != "redteam"]
    if not kept:
        return []
    n, num_draws = len(candidate.draws) // len(asked), candidate.draws.shape[1]
    new = candidate.draws.float().reshape(len(asked), n, num_draws).mean(1)[kept].tolist()
    old = stable.draws.float().reshape(len(asked), n, num_draws).mean(1)[kept].tolist()
    rows = [asked[i] for i in kept]
    figures = []
    for part, members in _slice(rows, min_slice):
        differences = [[a - b for a, b in zip(new[i], old[i], strict=True)] for i in members]
        keys = [rows[i].prompt.key or id(rows[i]) for i in members]
        means = [math.fsum(math.fsum(values[i]) for i in members) / (len(members) * num_draws) for values in (new, old)]
        figures.append(Figure(name, means[0], means[1], estimate_over_draws(differences, keys), part))
    return figures
