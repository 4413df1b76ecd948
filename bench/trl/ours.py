"""This trainer's side of a task that TRL's worker takes too: the same ids, first weights, optimizer and dtype.

A worker when run as a program: it stays warm between tasks, as the trainer does between rounds. `seconds` of DPO are from the
pairs' ids to the trained adapter, references included.
"""

import gc
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.trl.models import load_backbone
from bench.trl.worker import Clock, forget_peak_memory, read_peak_mb, serve
from trainer.learn.dpo import run_dpo
from trainer.learn.loop import Loop, ParameterGroup, Part
from trainer.learn.references import References
from trainer.learn.reward.model import RewardModel
from trainer.learn.sft import run_sft
from trainer.math.losses import rao_kupper_logprobs
from trainer.model.backbone import Backbone
from trainer.sections.reward import RewardSection
from trainer.sections.training import DpoSection, SftSection
from trainer.text.batches import plan_batches
from trainer.text.pairs import Answer, Pair, Prompt
from trainer.text.transcript import EncodedAnswer, EncodedPair

FLAT = {"warmup_share": 0.0, "decay": "none"}
UPDATE = 64  # new pairs of one update of the reward model
NEARLY_ONE = 1e-7  # log nu without ties: Rao and Kupper's win is Bradley and Terry's


@lru_cache(maxsize=1)
def warm_backbone(model: str, bf16: bool, device: str, float64: bool = False) -> Backbone:
    backbone = load_backbone(Path(model), bf16=bf16, device=device)
    if float64:
        backbone.causal_lm.double()
    return backbone


def prepare(asked: dict[str, Any], adapter: str) -> Backbone:
    """The backbone, its adapter at its first weights."""
    torch.set_num_threads(asked["threads"])
    backbone = warm_backbone(asked["model"], asked["bf16"], asked["device"], asked.get("float64", False))
    backbone.adapters.restore(adapter, load_file(asked["adapter"]))
    gc.collect()
    forget_peak_memory()
    if asked["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return backbone


def finish(asked: dict[str, Any], clock: Clock, steps: list[dict[str, float]]) -> dict[str, Any]:
    if asked["device"] == "cuda":
        torch.cuda.synchronize()
    seconds = clock.read()
    peak_gpu_mb = torch.cuda.max_memory_allocated() / 2**20 if asked["device"] == "cuda" else 0.0
    return {**seconds, "rss_mb": read_peak_mb(), "gpu_mb": peak_gpu_mb, "steps": steps}


def make_pairs(rows: Sequence[dict[str, list[int]]]) -> list[EncodedPair]:
    """Pairs of these ids, the first answer the chosen one."""
    nothing = Answer(text="")
    return [
        EncodedPair(
            Pair(event_id=f"e{i}", prompt=Prompt(messages=[]), first=nothing, second=nothing, preferred="first"),
            tuple(row["prompt_ids"]),
            tuple(row["chosen_ids"]),
            tuple(row["rejected_ids"]),
        )
        for i, row in enumerate(rows)
    ]


def dpo(asked: dict[str, Any]) -> dict[str, Any]:
    """rows: [{prompt_ids, chosen_ids, rejected_ids}]; references_dir: a cache to be used, "" for none."""
    backbone, steps = prepare(asked, "policy"), []
    with tempfile.TemporaryDirectory() as empty:
        cache = References(Path(asked.get("references_dir") or empty), "bench")
        section = DpoSection(
            lr=asked["lr"], epochs=asked["epochs"], batch_size=asked["batch_size"], nll_weight=0, **FLAT, **asked["dpo"]
        )

        def record(share: float, figures: dict[str, float]) -> None:
            chosen, rejected = figures["chosen_logprob"], figures["rejected_logprob"]
            steps.append({"loss": figures["loss"], "chosen": chosen, "rejected": rejected})

        clock = Clock()
        run_dpo(
            backbone,
            make_pairs(asked["rows"]),
            section,
            references=lambda answers: cache.get(backbone, answers, None, "base"),
            progress=record,
        )
        return finish(asked, clock, steps)


def fill_references(asked: dict[str, Any]) -> dict[str, Any]:
    """Compute the references of a history into references_dir."""
    backbone = prepare(asked, "policy")
    answers = [answer for pair in make_pairs(asked["rows"]) for answer in pair.answers]
    clock = Clock()
    References(Path(asked["references_dir"]), "bench").get(backbone, answers, None, "base")
    return clock.read()


def sft(asked: dict[str, Any]) -> dict[str, Any]:
    """rows: [{prompt_ids, chosen_ids}]."""
    backbone, steps = prepare(asked, "policy"), []
    section = SftSection(lr=asked["lr"], epochs=asked["epochs"], batch_size=asked["batch_size"], **FLAT)
    answers = [EncodedAnswer(tuple(row["prompt_ids"]), tuple(row["chosen_ids"])) for row in asked["rows"]]
    clock = Clock()
    run_sft(
        backbone,
        answers,
        section,
        ids=[f"e{i}" for i in range(len(answers))],
        progress=lambda share, figures: steps.append({"loss": figures["loss"]}),
    )
    return finish(asked, clock, steps)


def bradley_terry(asked: dict[str, Any]) -> dict[str, Any]:
    """The reward model's loss without ties, smoothing and features, on a linear head: what TRL's trainer computes."""
    backbone, steps = prepare(asked, "reward"), []
    head = nn.Linear(backbone.hidden_size, 1, bias=False, device=backbone.device)
    with torch.no_grad():
        head.weight.copy_(load_file(asked["head"])["weight"])
    pairs = make_pairs(asked["rows"])
    clock = Clock()
    with backbone.adapters.training("reward"):
        parameters = backbone.adapters.parameters_of("reward")
        groups = [ParameterGroup("reward", parameters, asked["lr"])]
        loop = Loop([*groups, ParameterGroup("head", dict(head.named_parameters()), asked["lr"])], None)
        for start in range(0, asked["epochs"] * len(pairs), asked["batch_size"]):
            begin = start % len(pairs)
            batch = pairs[begin : begin + asked["batch_size"]]
            plans = plan_batches([pair.length for pair in batch], backbone.token_budget)
            parts = [make_reward_part(backbone, head, [batch[i] for i in plan], len(batch), asked) for plan in plans]
            figures = loop.step(parts)
            steps.append({"loss": figures["loss"], "margin": figures["margin"]})
    return finish(asked, clock, steps)


def make_reward_part(
    backbone: Backbone, head: nn.Linear, pairs: Sequence[EncodedPair], total: int, asked: dict[str, Any]
) -> Part:
    def part() -> tuple[Tensor, dict[str, float]]:
        batch = backbone.make_batch([(pair.prompt, (pair.first, pair.second)) for pair in pairs])
        scores = head(backbone.hidden(batch)[batch.answer_rows, batch.ends - 1].float()).squeeze(1)
        chosen, rejected = scores[0::2], scores[1::2]
        losses = -rao_kupper_logprobs(chosen - rejected, NEARLY_ONE)[0]
        centred = losses + asked["centre_weight"] * (chosen + rejected) ** 2
        return centred.sum() / total, {"margin": (chosen - rejected).detach().sum().item() / total}

    return part


def update_reward(asked: dict[str, Any]) -> dict[str, Any]:
    """texts: [(question, chosen, rejected)], learnt from as the trainer does, UPDATE pairs at a time, by a new reward model."""
    backbone = prepare(asked, "reward")
    reward = RewardModel(backbone, RewardSection())
    pairs = [
        Pair(
            event_id=f"e{i}",
            prompt=Prompt(messages=[{"role": "user", "content": question}], key=str(i)),
            first=Answer(text=chosen),
            second=Answer(text=rejected),
            preferred="first",
        )
        for i, (question, chosen, rejected) in enumerate(asked["texts"])
    ]
    clock = Clock()
    for start in range(0, len(pairs), UPDATE):
        reward.update(pairs[start : start + UPDATE], [])
    return finish(asked, clock, [])


if __name__ == "__main__":
    serve(
        {
            "dpo": dpo,
            "fill_references": fill_references,
            "sft": sft,
            "reward": bradley_terry,
            "update_reward": update_reward,
        }
    )
