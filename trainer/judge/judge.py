"""Judges the `policy` adapter beside `stable`: chooses what is asked, has it sampled and measured, and asks the gate.

Leaves the adapters as they are. Rows and prompts that the policy cannot read are logged and left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trainer.judge import likelihoods, measures
from trainer.judge.answers import HarmScreen
from trainer.judge.frozen import FrozenRow, FrozenSets
from trainer.judge.gate import Verdict, decide
from trainer.judge.ladder import FROZEN_FIGURES, Rung, find_gain, measure_win_rate
from trainer.judge.measures import Asked, Checkers, Example, Figure, Figures, Scorer
from trainer.judge.parts import compare_rewards
from trainer.learn.hearing import Hear, hear_part, ignore_share
from trainer.learn.isolation import NotFinite
from trainer.learn.rewards.rewards import Rewards
from trainer.learn.sampling.sampler import Sampled, Sampler, SamplingParameters
from trainer.sections.judging import GateSection
from trainer.sections.training import RoundKind
from trainer.text.pairs import Answer, Prompt

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

log = logging.getLogger("trainer.judge")

NEEDS = {  # what a kind of rows measures, for the verdict to name where there is none
    "fact": "facts",
    "task": "tasks",
    "redteam": "red-team attacks",
    "bias": "bias pairs",
    "anchor": "anchor perplexity",
    "demonstration": "demonstrations",
}


def judge_checkpoint(
    backbone: Backbone,
    sampler: Sampler,
    reward: Scorer | None,
    auditor: Scorer | None,
    frozen: FrozenSets,
    settings: GateSection,
    *,
    parameters: SamplingParameters,
    heldout: Sequence[Prompt] = (),
    checkers: Checkers | None = None,
    rewards: Rewards | None = None,
    kind: RoundKind = "dpo",
    look: int = 1,
    seed: int = 0,
    progress: Callable[[float, str], None] = lambda share, step: None,
) -> Verdict:
    """Measure adapter `policy` beside `stable` and decide.

    heldout: prompts of held-out pairs, the newest last. kind: of the round. auditor: None until it has shown that it foresees
    choices. checkers: for tasks that name one. rewards: the parts of the round's reward, shown beside the gate's figures.
    progress(share, step): step is what is being done, in words. Raises OSError if the list of harmful words cannot be read.
    """
    checkers = checkers or {}
    frozen = keep_usable(backbone, frozen, parameters.max_tokens, checkers)
    heldout = keep_readable(backbone, heldout[-settings.max_prompts :] if settings.max_prompts else (), parameters)
    asked = measures.list_asked(frozen.rows, heldout)
    if not asked:
        return decide(Figures(), settings, look, frozen.path, kind)
    if not is_sound(backbone, "policy"):
        return Verdict(False, "the adapter holds values, or gives logits, that are not finite")
    n = max(1, min(settings.samples_per_prompt, settings.max_samples // len(asked)))
    answers: dict[str, list[Sampled]] = {}
    try:
        for number, adapter in enumerate(("policy", "stable")):
            show = _say(progress, f"sampling {n * len(asked)} answers of {adapter}")
            show(0.35 * number)
            hear = hear_part(show, 0.35 * number, 0.35)
            answers[adapter] = measures.sample_answers(sampler, asked, adapter, parameters, n, seed, hear)
        drawn = _draw_for_kl(
            sampler, asked, answers["policy"], parameters, seed,
            lambda share: progress(0.7, "sampling answers from all tokens"),
        )  # fmt: skip
    except NotFinite as error:
        return Verdict(False, str(error))
    progress(0.7, "measuring them")
    harm = HarmScreen.load(settings.harm_words)
    rows = measures.compare_answers(
        asked, answers["policy"], answers["stable"], harm, checkers, settings.min_slice_prompts
    )
    rows += _compare_texts(backbone, frozen, settings, parameters.temperature)
    encoded = {adapter: likelihoods.encode_answers(backbone, asked, sampled) for adapter, sampled in answers.items()}
    texts = {adapter: [each.answer.text for each in sampled] for adapter, sampled in answers.items()}
    for name, scorer in (("reward", reward), ("auditor", auditor)):
        if scorer is not None:
            new, old = (scorer.score(encoded[adapter], texts[adapter]) for adapter in ("policy", "stable"))
            rows += measures.compare_scores(name, asked, new, old, settings.min_slice_prompts)
    if rewards is not None:
        rows += compare_rewards(rewards, asked, answers, encoded)
    progress(0.9, "measuring the distance to the base")
    drawn_ids = likelihoods.encode_answers(backbone, asked, drawn)
    kl = likelihoods.measure_kl(backbone, drawn_ids, "policy", (None, "stable"), parameters.temperature)
    missing = [said for kind, said in NEEDS.items() if not frozen.of(kind)]
    missing += ["the auditor"] if auditor is None else []
    figures = Figures(tuple(rows), kl[0], kl[1], len(asked), tuple(missing), sampler.source)
    progress(1.0, "deciding")
    verdict = decide(figures, settings, look, frozen.path, kind)
    return replace(verdict, examples=pick_examples(asked, answers))


def measure_rung(
    backbone: Backbone,
    sampler: Sampler,
    scorers: Mapping[str, Scorer],
    frozen: FrozenSets,
    settings: GateSection,
    *,
    parameters: SamplingParameters,
    heldout: Sequence[Prompt],
    checkpoint: str,
    first: str,
    kl: float = 0.0,
    checkers: Checkers | None = None,
    seed: int = 0,
    hear: Hear = ignore_share,
) -> Rung | None:
    """Where adapter `policy` stands on the ladder: beside the base, which answers as checkpoint 0 does. One answer a prompt.

    checkpoint, first: their ids. scorers: "reward" and "auditor", of which the last decides who wins. kl: to the base, nats an
    answer. hear: of the answers of either. None where there is nothing to ask.
    """
    checkers = checkers or {}
    frozen = keep_usable(backbone, frozen, parameters.max_tokens, checkers)
    heldout = keep_readable(backbone, heldout[-settings.max_prompts :] if settings.max_prompts else (), parameters)
    asked = [each for each in measures.list_asked(frozen.rows, heldout) if each.kind != "bias"]
    if not asked:
        return None
    new, old = (
        measures.sample_answers(sampler, asked, adapter, parameters, 1, seed, hear) for adapter in ("policy", None)
    )
    rows = measures.compare_answers(asked, new, old, HarmScreen([]), checkers, settings.min_slice_prompts)
    wished = [i for i, each in enumerate(asked) if each.kind != "redteam"]
    texts = [[sampled[i].answer.text for i in wished] for sampled in (new, old)]
    encoded = [
        likelihoods.encode_answers(backbone, [asked[i] for i in wished], [sampled[i] for i in wished])
        for sampled in (new, old)
    ]
    scores = {
        name: [scorer.score(answers, said) for answers, said in zip(encoded, texts, strict=True)]
        for name, scorer in scorers.items()
    }
    judge = list(scores)[-1]
    return Rung(
        checkpoint,
        first,
        measure_win_rate([asked[i] for i in wished], scores[judge][0], scores[judge][1]),
        judge,
        {row.name: row.candidate for row in rows if row.name in FROZEN_FIGURES and not row.slice},
        frozen.versions,
        kl,
        {name: find_gain(new, old) for name, (new, old) in scores.items()},
    )


def _say(progress: Callable[[float, str], None], step: str) -> Hear:
    return lambda share: progress(share, step)


def _draw_for_kl(
    sampler: Sampler,
    asked: Sequence[Asked],
    answers: Sequence[Sampled],
    parameters: SamplingParameters,
    seed: int,
    hear: Hear,
) -> Sequence[Sampled]:
    """One answer of the policy a prompt, drawn from all tokens: more say no more, and take their time.

    KL(policy || other) is a mean over the policy's own distribution. A nucleus (top_p below 1) is another one, and two nuclei have
    no finite KL; so where apps sample from one, an answer is drawn anew.
    """
    if parameters.top_p >= 1:
        return answers[:: len(answers) // len(asked)]
    return measures.sample_answers(sampler, asked, "policy", replace(parameters, top_p=1.0), 1, seed, hear)


def _compare_texts(backbone: Backbone, frozen: FrozenSets, settings: GateSection, temperature: float) -> list[Figure]:
    """What is measured without sampling."""
    least = settings.min_slice_prompts
    figures = likelihoods.compare_anchors(backbone, frozen.of("anchor"), temperature, least)
    figures += likelihoods.compare_demonstrations(backbone, frozen.of("demonstration"), least)
    return figures + likelihoods.compare_bias(backbone, frozen.of("bias"), least)


def is_sound(backbone: Backbone, adapter: str) -> bool:
    """Whether the adapter's values and the logits under it are finite."""
    with backbone.adapters.inferring(adapter):
        return backbone.is_sound(adapter)


def pick_examples(
    asked: Sequence[Asked], answers: Mapping[str, Sequence[Sampled]], num: int = 12
) -> tuple[Example, ...]:
    """The first answers to prompts spread evenly over all."""
    n = len(answers["policy"]) // len(asked)
    step = max(1, len(asked) // num)
    return tuple(
        Example(asked[i].question, answers["stable"][i * n].answer.text, answers["policy"][i * n].answer.text)
        for i in range(0, len(asked), step)
    )[:num]


def keep_usable(backbone: Backbone, frozen: FrozenSets, max_tokens: int, checkers: Checkers) -> FrozenSets:
    """The rows whose prompts and references the policy can read whole, and whose checker is registered."""

    def is_usable(row: FrozenRow) -> bool:
        if row.checker and row.checker not in checkers:
            log.warning("a frozen task is left out: no checker %r is registered", row.checker)
            return False
        prompts = [row.prompt] if row.other is None else [row.prompt, row.other]
        return all(_is_readable(backbone, p, row.references, row.max_tokens or max_tokens) for p in prompts)

    return replace(frozen, rows=tuple(row for row in frozen.rows if is_usable(row)))


def keep_readable(backbone: Backbone, prompts: Sequence[Prompt], parameters: SamplingParameters) -> list[Prompt]:
    """The prompts behind which an answer of max_tokens fits, each once."""
    seen: set[tuple[int, ...]] = set()
    kept = []
    for prompt in prompts:
        if not _is_readable(backbone, prompt, (), parameters.max_tokens):
            continue
        ids = backbone.transcriber.encode_prompt(prompt)
        if ids not in seen:
            seen.add(ids)
            kept.append(prompt)
    return kept


def _is_readable(backbone: Backbone, prompt: Prompt, references: Sequence[str], max_tokens: int) -> bool:
    try:
        for reference in references:
            backbone.transcriber.encode_answer(prompt, Answer(text=reference))
        return len(backbone.transcriber.encode_prompt(prompt)) + max_tokens <= backbone.max_tokens
    except Exception as error:  # templates and tokenizers raise what they like
        log.warning("a prompt of the offline gate is left out: %s", error)
        return False
