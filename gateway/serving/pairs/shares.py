"""In which share a comparison is asked, and with which probability. Pure.

The share is drawn before anything is known of the candidates. A comparison that falls back is random, with the probability
that a random pair was shown while the scorer was as it was: every share would have ended so.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from gateway.sections.asking import AskingSection
from gateway.serving.pairs.asking import Ask


def draw_share(ask: Ask, settings: AskingSection, rng: Random) -> Ask:
    """The ask in one of the three shares, whose chance its propensity includes."""
    left = rng.random()
    drawn = ask
    for share, chance in settings.shares.items():
        if not chance:
            continue
        drawn = replace(ask, share=share, propensity=ask.propensity * chance)
        if left < chance:
            break
        left -= chance
    return drawn


def fall_back(ask: Ask, settings: AskingSection) -> Ask:
    """A drawn ask whose two answers are not picked after all."""
    return replace(ask, share="random", propensity=ask.propensity / settings.shares[ask.share])
