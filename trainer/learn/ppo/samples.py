"""Which prompts each iteration of a PPO round asks, and the policy's answers to them.

Decided by seed and event ids alone: a resumed round asks the same. With an engine, answers may be begun ahead, by the policy as it
stands then; where that fails they are sampled when they are needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from trainer.learn.hearing import Hear, ignore_share
from trainer.learn.isolation import NotFinite, run_isolated
from trainer.learn.sampling.sampler import EngineFailed, Sampled, Sampler, Samples, SamplingParameters, SamplingRequest
from trainer.learn.steps import plan_steps
from trainer.math.seeds import derive_seed
from trainer.sections.training import PpoSection
from trainer.text.pairs import PromptRow

log = logging.getLogger("trainer.learn")


class PpoSamples:
    """Answers of adapter "policy", iteration by iteration. blame: as in experience."""

    def __init__(
        self,
        sampler: Sampler,
        rows: Sequence[PromptRow],
        section: PpoSection,
        parameters: SamplingParameters,
        *,
        seed: int,
        blame: Callable[[str, Exception], None],
        hear: Hear = ignore_share,
    ) -> None:
        self._sampler, self._section, self._parameters = sampler, section, parameters
        self._seed, self._blame, self._hear = seed, blame, hear
        self._begun: tuple[int, Callable[[], Samples]] | None = None
        drawn = plan_steps(
            [row.event_id for row in rows],
            [0] * len(rows),  # prompts of any length stand side by side
            batch_size=section.prompts_per_iteration,
            epochs=1,
            seed=seed,
            num_steps=section.iterations,
        )
        self._rows = [[rows[i] for i in chosen] for chosen in drawn]

    def begin(self, iteration: int) -> None:
        """Have an engine begin an iteration's answers, if there is such an iteration; a local sampler is left alone, since it would
        gain no time by it."""
        if not self._section.overlap or self._sampler.source != "engine" or iteration >= len(self._rows):
            return
        try:
            self._begun = iteration, self._sampler.begin(self._make_request(iteration, self._rows[iteration]))
        except (EngineFailed, NotFinite) as error:
            log.warning("the answers of iteration %d are not begun ahead: %s", iteration, error)

    def count_asked(self, iteration: int) -> int:
        """How many answers the iteration asks for."""
        return len(self._rows[iteration]) * self._section.samples_per_prompt

    def take(self, iteration: int) -> tuple[list[PromptRow], Samples]:
        """The iteration's prompts, less those whose answers failed, and answers to each."""
        rows, (begun, self._begun) = self._rows[iteration], (self._begun, None)
        if begun and begun[0] == iteration:
            try:
                return rows, begun[1]()
            except (EngineFailed, NotFinite) as error:
                log.warning("the answers of iteration %d that were begun are lost: %s", iteration, error)
        try:
            return rows, self._sample(iteration, rows)
        except NotFinite:
            return self._sample_apart(iteration, rows)

    def _sample_apart(self, iteration: int, rows: Sequence[PromptRow]) -> tuple[list[PromptRow], Samples]:
        found: list[tuple[PromptRow, list[Sampled]]] = []

        def run(some: Sequence[PromptRow]) -> None:
            found.extend(zip(some, self._sample(iteration, some), strict=True))

        run_isolated(rows, run, lambda row, error: self._blame(row.event_id, error))
        return [row for row, _ in found], [answers for _, answers in found]

    def _sample(self, iteration: int, rows: Sequence[PromptRow]) -> Samples:
        return self._sampler.sample(self._make_request(iteration, rows))

    def _make_request(self, iteration: int, rows: Sequence[PromptRow]) -> SamplingRequest:
        prompts, n = [row.prompt for row in rows], self._section.samples_per_prompt
        seed = derive_seed(self._seed, "ppo", iteration)
        return SamplingRequest(prompts, "policy", n, self._parameters, seed, self._hear)
