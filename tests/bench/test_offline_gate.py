"""The broken checkpoints of the offline gate's measurement learn answers that are broken as they should be."""

import random

from bench.offline_gate.checkpoints import BROKEN, REFUSALS, TASTES, forget, ramble
from feedback.refusals import refuses
from prefloop.demo.worlds import capitals as world
from trainer.judge.answers import is_looping

QUESTION = world.Question("France", 0)


def test_every_kind_of_broken_checkpoint_that_is_promised_is_made() -> None:
    promised = {"garbled", "long", "forgotten facts", "not a number", "other base", "copied prompt", "refuses"}
    assert BROKEN.keys() == promised


def test_forgotten_facts_are_said_in_the_style_that_is_liked() -> None:
    rng = random.Random(0)
    for style in TASTES:
        said = forget(QUESTION, style, rng)
        assert "Paris" not in said
        assert world.classify(QUESTION.text, said) == "wrong"


def test_long_answers_repeat_themselves_and_refusals_refuse() -> None:
    assert is_looping(ramble(QUESTION, "complete", random.Random(0)))
    assert all(refuses(text) for text in REFUSALS)
