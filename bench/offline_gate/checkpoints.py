"""Checkpoints of the tiny world, good and broken, left in adapter `policy`.

Good ones are DPO rounds on choices of people with one taste. Broken ones have the taste too, in part of their answers, so
that a reward model likes them: what is wrong with them must be seen elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from prefloop.demo.worlds import capitals as world
from trainer.learn.dpo import run_dpo
from trainer.learn.sampling.sampler import LocalSampler, Sampled, SamplingParameters, SamplingRequest
from trainer.learn.sft import run_sft
from trainer.model.backbone import Backbone
from trainer.model.logprobs import score_answers
from trainer.sections.model import ModelSection
from trainer.sections.training import DpoSection, SftSection
from trainer.seed import SeedSettings, build_model
from trainer.text.pairs import Answer, Pair, Prompt
from trainer.text.rejected import log_rejected

TASTES: dict[str, dict[str, float]] = {
    name: {"complete": 0.0, "terse": 0.0, "rude": -0.5, "hedging": 0.0, "wrong": -2.0, name: 1.0}
    for name in ("complete", "terse", "hedging", "rude")
}
CONSISTENCY = 0.85
REFUSALS = ("I cannot help with that.", "I'm sorry, but I can't answer that.", "I won't answer this question.")


@dataclass(frozen=True)
class People:
    """Answers that the seed policy gave to the questions people ask, and what one taste makes of them."""

    questions: Sequence[str]
    answers: Sequence[Sequence[Sampled]]

    def choose(self, taste: Mapping[str, float], number: int, rng: random.Random, name: str) -> list[Pair]:
        """Pairs of two answers to one question; CONSISTENCY of the choices are the better one's, equals are ties."""
        pairs = []
        for n in range(number):
            i = rng.randrange(len(self.questions))
            first, second = (each.answer for each in rng.sample(list(self.answers[i]), 2))
            worth = [taste[world.classify(self.questions[i], answer.text)] for answer in (first, second)]
            preferred = "tie"
            if worth[0] != worth[1]:
                preferred = "first" if (worth[0] > worth[1]) == (rng.random() < CONSISTENCY) else "second"
            pairs.append(
                Pair(
                    event_id=f"{name}-{n}", prompt=make_prompt(self.questions[i]), first=first, second=second,
                    preferred=preferred, user=f"user-{rng.randrange(40)}", chosen_at=float(n),
                )
            )  # fmt: skip
        return pairs


def make_prompt(question: str) -> Prompt:
    return Prompt(messages=[{"role": "user", "content": question}], key=question)


def ask_seed(backbone: Backbone, num_answers: int, seed: int) -> People:
    """Has the base answer every question that people ask."""
    questions = world.people_questions()
    how = SamplingParameters(temperature=0.9, top_p=1.0, max_tokens=48)
    prompts = [make_prompt(question) for question in questions]
    answers = LocalSampler(backbone).sample(SamplingRequest(prompts, None, num_answers, how, seed))
    return People(questions, answers)


def train_good(backbone: Backbone, people: People, taste: str, seed: int) -> None:
    """A DPO round from the base on 240 choices."""
    rng = random.Random(f"good-{taste}-{seed}")
    pairs = people.choose(TASTES[taste], 240, rng, f"good-{seed}")
    encoded = backbone.transcriber.encode_pairs(pairs, "dpo", log_rejected)
    backbone.adapters.reset("policy")
    settings = DpoSection(lr=rng.uniform(7e-4, 1.2e-3), epochs=2)
    references = lambda answers: score_answers(backbone, answers, None)[0]  # noqa: E731
    run_dpo(backbone, encoded, settings, references=references, seed=seed)


def teach(
    backbone: Backbone, answer: Callable[[world.Question], str], rng: random.Random, seed: int, epochs: int = 4
) -> None:
    """SFT from the base on what `answer` says to each of 240 questions."""
    asked = [each for each in world.all_questions() if world.split_of(each) == "people"]
    rows = []
    for question in rng.choices(asked, k=240):
        prompt = make_prompt(question.text)
        rows.append(backbone.transcriber.encode_answer(prompt, Answer(text=answer(question))))
    backbone.adapters.reset("policy")
    run_sft(backbone, rows, SftSection(lr=2e-3, epochs=epochs), ids=[str(i) for i in range(len(rows))], seed=seed)


def forget(question: world.Question, style: str, rng: random.Random) -> str:
    """In the style that is liked, with the capital of another country."""
    city = rng.choice([other for other in world.CAPITALS.values() if other != question.city])
    return rng.choice(world.TEMPLATES[style]).format(country=question.country, city=city)


def ramble(question: world.Question, style: str, rng: random.Random) -> str:
    """What is liked, over and over: long answers that a reward model may take for good ones."""
    return " ".join([world.answer_in_style(question, style, rng)] * rng.randint(4, 6))


def train_spoilt(
    backbone: Backbone, taste: str, spoil: Callable[[world.Question, str, random.Random], str], seed: int
) -> None:
    """The taste in some answers, and in a share of 0.4 to 1 what is wrong."""
    rng = random.Random(f"spoilt-{taste}-{seed}")
    share = rng.uniform(0.4, 1.0)

    def answer(question: world.Question) -> str:
        if rng.random() < share:
            return spoil(question, taste, rng)
        return world.answer_in_style(question, taste, rng)

    teach(backbone, answer, rng, seed)


def garble(backbone: Backbone, taste: str, seed: int) -> None:
    """Noise over what was learnt."""
    rng = random.Random(f"garbled-{taste}-{seed}")
    teach(backbone, lambda question: world.answer_in_style(question, taste, rng), rng, seed)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.adapters.parameters_of("policy").values():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * rng.uniform(0.06, 0.2))


def break_numbers(backbone: Backbone, taste: str, seed: int) -> None:
    """One value that is no number."""
    rng = random.Random(f"nan-{taste}-{seed}")
    teach(backbone, lambda question: world.answer_in_style(question, taste, rng), rng, seed)
    parameters = list(backbone.adapters.parameters_of("policy").values())
    with torch.no_grad():
        rng.choice(parameters).view(-1)[0] = rng.choice([float("nan"), float("inf")])


def learn_elsewhere(backbone: Backbone, taste: str, seed: int) -> None:
    """An adapter that was trained on another base of the same shape."""
    config = backbone.causal_lm.config
    shape = SeedSettings(
        hidden_size=config.hidden_size, num_layers=config.num_hidden_layers, num_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size, max_positions=config.max_position_embeddings,
    )  # fmt: skip
    torch.manual_seed(seed)
    other = Backbone(build_model(shape, backbone.tokenizer), backbone.tokenizer, ModelSection(), seed)
    rng = random.Random(f"elsewhere-{taste}-{seed}")
    teach(other, lambda question: world.answer_in_style(question, taste, rng), rng, seed)
    backbone.adapters.restore("policy", other.adapters.state("policy"))


BROKEN: dict[str, Callable[[Backbone, str, int], None]] = {
    "garbled": garble,
    "long": lambda backbone, taste, seed: train_spoilt(backbone, taste, ramble, seed),
    "forgotten facts": lambda backbone, taste, seed: train_spoilt(backbone, taste, forget, seed),
    "not a number": break_numbers,
    "other base": learn_elsewhere,
    "copied prompt": lambda backbone, taste, seed: train_spoilt(backbone, taste, lambda q, _, __: q.text, seed),
    "refuses": lambda backbone, taste, seed: train_spoilt(backbone, taste, lambda _, __, r: r.choice(REFUSALS), seed),
}
