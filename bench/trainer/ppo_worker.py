"""A PPO round of this trainer and a policy's step alone on the same answers, each in a process of its own: their speed and memory.

Memory is what a task holds at its peak beyond what Python and its libraries take before a model is loaded; on a GPU what is allocated
there. A round has policy, value, reward and reference, and samples with the trainer's own copy of the model.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.trl.models import WORDS, load_backbone
from bench.trl.worker import Clock, forget_peak_memory, read_peak_mb, serve
from trainer.learn.loop import Loop, ParameterGroup
from trainer.learn.ppo.experience import Experience
from trainer.learn.ppo.run import run_ppo
from trainer.learn.ppo.step import PpoStep
from trainer.learn.ppo.value import start_value
from trainer.learn.reward.model import RewardModel
from trainer.learn.rewards.rewards import Sample, make_rewards
from trainer.learn.sampling.sampler import LocalSampler, Sampled, Samples, SamplingParameters, SamplingRequest
from trainer.model.backbone import Backbone
from trainer.model.heads import ValueHead
from trainer.model.logprobs import MOST_SHARED, group_by_prompt
from trainer.model.memory import release_memory
from trainer.sections.reward import RewardSection, RewardsSection
from trainer.sections.training import PpoSection
from trainer.text.pairs import Answer, Pair, Prompt, PromptRow
from trainer.text.transcript import EncodedAnswer

NUM_TAUGHT = 32  # pairs that the reward model has learnt from
TEMPERATURE = 1.0


class Recorder:
    """A local sampler that keeps what it said last."""

    source = "local"

    def __init__(self, backbone: Backbone, max_batch_tokens: int) -> None:
        self._backbone, self._sampler = backbone, LocalSampler(backbone, max_batch_tokens)
        self.answers: list[tuple[Prompt, Sampled]] = []

    def sample(self, request: SamplingRequest) -> Samples:
        """As the protocol says."""
        sampled = self._sampler.sample(request)
        self.answers = [(prompt, each) for prompt, some in zip(request.prompts, sampled, strict=True) for each in some]
        return sampled

    def list_ids(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Ids of prompt and answer, of each of the last answers."""
        encode = self._backbone.transcriber.encode_prompt
        return [(encode(prompt), sampled.answer.ids or ()) for prompt, sampled in self.answers]


def say(rng: random.Random, bounds: Sequence[int]) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(*bounds)))


def teach_reward(backbone: Backbone, asked: dict[str, Any]) -> RewardModel:
    """A reward model that has learnt something, so that it has all its parts."""
    rng, reward = random.Random(1), RewardModel(backbone, RewardSection())
    pairs = [
        Pair(
            event_id=f"e{i}",
            prompt=Prompt(messages=[{"role": "user", "content": say(rng, asked["prompt_words"])}], key=str(i)),
            first=Answer(text=say(rng, asked["answer_words"])),
            second=Answer(text=say(rng, asked["answer_words"])),
            preferred=rng.choice(["first", "second"]),
        )
        for i in range(NUM_TAUGHT)
    ]
    reward.update(pairs, [])
    return reward


def load(asked: dict[str, Any]) -> tuple[Backbone, float]:
    """The backbone, and the MiB that were held before it."""
    torch.set_num_threads(asked["threads"])
    before = read_peak_mb()
    return load_backbone(Path(asked["model"]), bf16=asked["bf16"], device=asked["device"]), before


def finish(asked: dict[str, Any], clock: Clock, before_mb: float) -> dict[str, Any]:
    if asked["device"] == "cuda":
        torch.cuda.synchronize()
        return {**clock.read(), "memory_mb": torch.cuda.max_memory_allocated() / 2**20}
    return {**clock.read(), "memory_mb": read_peak_mb() - before_mb}


def forget_peak(asked: dict[str, Any]) -> None:
    """Memory is measured from here on."""
    forget_peak_memory()
    if asked["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()


def ppo(asked: dict[str, Any]) -> dict[str, Any]:
    """A round. Returns the last iteration's answers, (prompt ids, answer ids) each, beside the figures."""
    backbone, before = load(asked)
    reward = teach_reward(backbone, asked)
    release_memory()  # lessons are no part of a round
    forget_peak(asked)
    rewards = make_rewards(RewardsSection(), reward)
    rng = random.Random(0)
    rows = [
        PromptRow(f"e{i}", Prompt(messages=[{"role": "user", "content": say(rng, asked["prompt_words"])}], key=str(i)))
        for i in range(asked["section"]["prompts_per_iteration"])
    ]
    anchor = Answer(text=say(rng, asked["answer_words"]))
    encode = backbone.transcriber.encode_answer
    rewards.anchor([Sample(row.prompt, anchor, encode(row.prompt, anchor)) for row in rows])
    sampler = Recorder(backbone, asked["sampled_tokens"])
    clock = Clock()
    figures = run_ppo(
        backbone,
        rows,
        make_section(asked),
        sampler=sampler,
        rewards=rewards,
        parameters=SamplingParameters(TEMPERATURE, 1.0, asked["section"]["max_tokens"]),
        reference=None,
        value=start_value(backbone, reward.adapter, share=reward.mix.share("adapter")),
    )
    return {**finish(asked, clock, before), "figures": figures, "answers": sampler.list_ids()}


def make_section(asked: dict[str, Any]) -> PpoSection:
    """No iteration ends early: what is measured hangs on no random weights."""
    return PpoSection(**asked["section"], max_approximate_kl=1e9)


def policy_steps(asked: dict[str, Any]) -> dict[str, Any]:
    """One pass of policy updates alone over answers that were sampled before, in the same steps as in a round."""
    backbone, before = load(asked)
    section = make_section(asked)
    answers = tuple(EncodedAnswer(tuple(prompt), tuple(answer)) for prompt, answer in asked["answers"])
    some = torch.randn(sum(len(each.answer) for each in answers), generator=torch.Generator().manual_seed(0))
    experience = Experience(
        event_ids=tuple(map(str, range(len(answers)))), answers=answers, old=some - 9.0, values=some,
        weights=torch.ones_like(some), advantages=some, returns=some, figures={},
    )  # fmt: skip
    rows = [tuple(group) for group in group_by_prompt(answers, MOST_SHARED if backbone.shares_prompt else 1)]
    size = -(-len(rows) // section.minibatches)
    release_memory()
    forget_peak(asked)
    clock = Clock()
    with backbone.adapters.training("policy"):
        head = ValueHead(1)  # none is asked
        step = PpoStep(backbone, section, head, experience, temperature=TEMPERATURE, switch=lambda adapter: None)
        loop = Loop([ParameterGroup("policy", backbone.adapters.parameters_of("policy"), 1e-5)], None, eps=1e-5)
        for start in range(0, len(rows), size):
            parts = step.make_parts(rows[start : start + size])
            loop.step(parts[: len(parts) // 2])  # the policy's come first
    return finish(asked, clock, before)


if __name__ == "__main__":
    serve({"ppo": ppo, "policy_steps": policy_steps})
