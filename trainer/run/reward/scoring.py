"""Scores candidates by the reward model in use, and says which two of them to ask about.

Reads the reward model's states and writes nothing. A version that does not load leaves the one before it in use. One request
at a time: torch has one thread here. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from feedback.inbox import key_prompt
from feedback.outages import describe_error
from feedback.scoring import ScoreAnswer, ScoredCandidate, ScoreRequest
from feedback.tool_calls import strip_tool_calls
from trainer.learn.isolation import NotFinite
from trainer.math.asking import choose_informative, choose_telling
from trainer.model.memory import release_memory
from trainer.run.reward.states import RewardStates
from trainer.text.messages import UnusableRow
from trainer.text.pairs import Answer, Prompt

if TYPE_CHECKING:
    from trainer.learn.reward.model import RewardModel

log = logging.getLogger("trainer.run.reward.scoring")


class ScoringFailed(Exception):
    """Nothing was scored. reason: not_ready, busy, late or unusable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Scorer:
    """A reward model that follows the version in use. max_waiting: requests beside the one that is scored."""

    def __init__(
        self,
        reward: RewardModel,
        states: RewardStates,
        max_waiting: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reward, self._states, self._now = reward, states, now
        self._places = threading.BoundedSemaphore(max_waiting + 1)
        self._torch = threading.Lock()
        self.version = 0
        self.num_failed_loads = 0
        self.problem = ""  # why the version in use is not the one that scores

    def refresh(self) -> bool:
        """Load the version in use if it is another than the one that scores; whether it was."""
        try:
            found = self._states.find_in_use()
            if found is None or found[0] == self.version:
                return False
            with self._torch:
                self._reward.load(found[1])
        except Exception as error:  # the trainer may have cleared it away just now, or a disk damaged it
            self.num_failed_loads += 1
            if (problem := describe_error(error)) != self.problem:
                log.warning("the reward model in use cannot be loaded, version %d goes on: %s", self.version, problem)
            self.problem = problem
            return False
        self.version, self.problem = found[0], ""
        release_memory()
        log.info("reward model %d scores", self.version)
        return True

    def score(self, request: ScoreRequest) -> ScoreAnswer:
        """The two to ask about, for each share. Raises ScoringFailed."""
        began = self._now()
        if not self._places.acquire(blocking=False):
            raise ScoringFailed("busy", "others are being scored")
        try:
            with self._torch:
                if not self.version:
                    raise ScoringFailed("not_ready", "there is no reward model yet")
                if 1000 * (self._now() - began) > request.budget_ms:
                    raise ScoringFailed("late", "nobody waits for it any more")
                return self._score(request)
        finally:
            self._places.release()

    def _score(self, request: ScoreRequest) -> ScoreAnswer:
        transcriber, prompt = self._reward.backbone.transcriber, _make_prompt(request)
        texts = [each.text for each in request.candidates]
        try:
            encoded = [transcriber.encode_answer(prompt, _make_answer(each)) for each in request.candidates]
            draws = self._reward.draw_scores(encoded[0].prompt, [each.answer for each in encoded], texts)
            informative, telling = choose_informative(draws), choose_telling(draws, request.seed % draws.shape[1])
        except (UnusableRow, NotFinite, ValueError) as error:
            raise ScoringFailed("unusable", describe_error(error)) from error
        return ScoreAnswer(version=self.version, informative=informative, telling=telling, draws=draws.tolist())


def _make_prompt(request: ScoreRequest) -> Prompt:
    ids = request.prompt_token_ids
    return Prompt(
        messages=request.messages,
        key=key_prompt(request.messages),
        ids=None if ids is None else tuple(ids),
        tools=request.tools,
        template_kwargs=request.chat_template_kwargs,
    )


def _make_answer(candidate: ScoredCandidate) -> Answer:
    ids = candidate.token_ids
    return Answer(
        text=strip_tool_calls(candidate.text, candidate.tool_calls),
        ids=None if ids is None else tuple(ids),
        finish_reason=candidate.finish_reason,
        reasoning=candidate.reasoning,
        tool_calls=candidate.tool_calls,
    )
