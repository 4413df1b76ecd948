"""PPO beside TRL 1.12.0, the last with a PPOTrainer: the same samples, rewards and first weights, step by step.

Compared are losses, clipping and KL of every step, and values, advantages, returns and log-probabilities of every token of every
iteration. Where TRL computes something else on purpose, it is told so: see ALLOWED.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.trl.models import Sizes, make_rows, write_rows
from bench.trl.ours import prepare
from trainer.learn.loop import Snapshots
from trainer.learn.ppo.experience import Experience
from trainer.learn.ppo.run import HEAD_FACTOR, run_ppo
from trainer.learn.rewards.rewards import Part, Rewards
from trainer.learn.sampling.sampler import Sampled, Samples, SamplingParameters, SamplingRequest
from trainer.model.backbone import Backbone
from trainer.model.heads import ValueHead
from trainer.model.logprobs import token_logprobs
from trainer.sections.training import PpoSection
from trainer.text.pairs import Answer, Prompt, PromptRow

TRL = "trl==1.12.0"
EPOCHS = 4
TEMPERATURE = 0.9
START_SPREAD = 0.02  # of the adapters' B: policy, reference and value differ from the first step on
ALLOWED = (
    "TRL whitens advantages by the sample variance (n - 1), this trainer by the population's (n): TRL's function has a switch",
    "TRL puts the score behind an answer's last token, in a state that has a value of its own, where the batch has room: here"
    " one line of its `train` is changed, so that it stands at the last token; without room (answers all of one length) TRL"
    " does that itself, and not a line of it is changed",
    "TRL's approximate KL is a mean over padding too: here over tokens, of TRL's own log-ratios",
    "TRL's PPO never clips gradients: here neither side does",
)
# (sizes, TRL's reward moved to the last token)
VARIANTS = {"ppo": (Sizes((8, 20), (6, 20)), True), "ppo one length": (Sizes((8, 20), (14, 14)), False)}


def write_ppo_start(folder: Path, backbone: Backbone, start: dict[str, Any]) -> dict[str, Any]:
    """First weights: of a policy and a value adapter that both differ from the base, and of a value head."""
    torch.manual_seed(2)
    first = load_file(start["adapter"])
    written: dict[str, Any] = {}
    for name in ("adapter", "value_adapter"):
        moved = {k: START_SPREAD * torch.randn_like(w) if "lora_B" in k else w for k, w in first.items()}
        written[name] = str(folder / f"ppo-{name}.safetensors")
        save_file(moved, written[name])
    written["value_head"] = str(folder / "ppo-head.safetensors")
    save_file({"weight": torch.randn(1, backbone.hidden_size), "bias": torch.tensor([0.3])}, written["value_head"])
    return written


def make_samples(backbone: Backbone, number: int, sizes: Sizes, is_tiny: bool) -> list[dict[str, Any]]:
    """Two answers to each prompt, every other one ended by the model's turn end, and a reward for each."""
    known = min(backbone.vocab_size, len(backbone.tokenizer))
    pairs = make_rows(number, sizes, known, 0) if is_tiny else write_rows(backbone, number, sizes, 0)
    end, draw = next(iter(backbone.transcriber.turn_ends)), torch.Generator().manual_seed(3)
    rows = []
    for pair in pairs:
        for side, is_ended in (("chosen_ids", True), ("rejected_ids", False)):
            ids = [*pair[side][:-1], end] if is_ended else pair[side]
            reward = torch.randn((), generator=draw).item()
            rows.append({"prompt_ids": pair["prompt_ids"], "answer_ids": ids, "reward": reward})
    return rows


def find_pad(backbone: Backbone, rows: Sequence[dict[str, Any]]) -> int:
    """A token that stands in no row: TRL tells padding by its id."""
    used = {token for row in rows for token in row["prompt_ids"] + row["answer_ids"]}
    return next(token for token in range(len(backbone.tokenizer)) if token not in used)


class GivenSampler:
    """Samples what it was given, drawn by the policy as it stands."""

    def __init__(self, backbone: Backbone, rows: Sequence[dict[str, Any]]) -> None:
        self.source = "given"
        self._backbone, self._rows = backbone, rows

    def sample(self, request: SamplingRequest) -> Samples:
        """All n answers to each prompt."""
        ends, sampled = self._backbone.transcriber.turn_ends, []
        for prompt in request.prompts:
            answers = [tuple(row["answer_ids"]) for row in self._rows if tuple(row["prompt_ids"]) == prompt.ids]
            assert len(answers) == request.n and prompt.ids is not None
            with self._backbone.adapters.inferring(request.adapter):
                batch = self._backbone.make_batch([(prompt.ids, answers)])
                scored, _ = token_logprobs(self._backbone, batch, request.parameters.temperature)
            logprobs = scored.split([len(ids) for ids in answers])
            reasons = ["stop" if ids[-1] in ends else "length" for ids in answers]
            sampled.append(
                [
                    Sampled(Answer(text="", ids=ids, finish_reason=reason), tuple(each.tolist()))
                    for ids, reason, each in zip(answers, reasons, logprobs, strict=True)
                ]
            )
        return sampled

    def begin(self, request: SamplingRequest) -> Callable[[], Samples]:
        """At once."""
        sampled = self.sample(request)
        return lambda: sampled


def ours(asked: dict[str, Any]) -> dict[str, Any]:
    """This trainer's side: run_ppo itself. Experience is read from where it is kept for a resume."""
    backbone, rows = prepare(asked, "policy"), asked["rows"]
    backbone.adapters.restore("value", load_file(asked["value_adapter"]))
    head = ValueHead(backbone.hidden_size)
    head.linear.load_state_dict(load_file(asked["value_head"]))
    given = {(tuple(row["prompt_ids"]), tuple(row["answer_ids"])): row["reward"] for row in rows}
    rewards = Rewards(
        [Part("given", 1.0, lambda some: [given[each.encoded.prompt, each.encoded.answer] for each in some])]
    )
    prompts = list(dict.fromkeys(tuple(row["prompt_ids"]) for row in rows))
    section = PpoSection(
        lr=asked["lr"],
        value_lr=asked["value_lr"],
        warmup_share=0,
        decay="none",
        iterations=asked["iterations"],
        prompts_per_iteration=len(prompts),
        samples_per_prompt=len(rows) // len(prompts),
        epochs=asked["epochs"],
        minibatches=1,
        clip=asked["clip"],
        value_clip=asked["value_clip"],
        value_weight=asked["value_weight"],
        gamma=asked["gamma"],
        lam=asked["lam"],
        missing_end_penalty=asked["missing_end_penalty"],
        kl_coefficient=asked["kl_coefficient"],
        max_approximate_kl=1e9,
        max_grad_norm=0,
        overlap=False,
    )
    steps: list[dict[str, float]] = []
    iterations: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:

        def record(share: float, figures: dict[str, float]) -> None:
            steps.append(figures)
            if len(iterations) == figures["iteration"]:
                iterations.append(read_experience(Path(folder) / f"experience-{len(iterations)}.safetensors", rows))

        run_ppo(
            backbone,
            [
                PromptRow(f"e{i}", Prompt(messages=[{"role": "user", "content": ""}], ids=ids))
                for i, ids in enumerate(prompts)
            ],
            section,
            sampler=GivenSampler(backbone, rows),
            rewards=rewards,
            parameters=SamplingParameters(asked["temperature"], 1.0, max(len(row["answer_ids"]) for row in rows)),
            reference=None,
            value=head,
            snapshots=Snapshots(Path(folder), 10**9),
            progress=record,
        )
    return {"steps": steps, "iterations": iterations}


def read_experience(path: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per answer token, in the order of rows."""
    made = Experience.load(path)
    places = {
        (answer.prompt, answer.answer): place for answer, place in zip(made.answers, made.list_places(), strict=True)
    }
    order = [places[tuple(row["prompt_ids"]), tuple(row["answer_ids"])] for row in rows]
    names = {"advantages": made.advantages, "returns": made.returns, "values": made.values, "logprobs": made.old}
    tokens = {name: [tensor[place.start : place.stop].tolist() for place in order] for name, tensor in names.items()}
    return {"tokens": tokens, "kl": made.figures["kl"]}


STEP_FIGURES = {  # ours: TRL's
    "loss": "loss",
    "policy_loss": "policy_loss",
    "value_loss": "value_loss",
    "approximate_kl": "approximate_kl",
    "clip_share": "clip_share",
    "value_clip_share": "value_clip_share",
}


def find_differences(mine: dict[str, Any], theirs: dict[str, Any], num_steps: int) -> dict[str, float]:
    """The largest by figure. Raises ValueError if a side has another number of steps, answers or tokens."""
    if not len(mine["steps"]) == len(theirs["steps"]) == num_steps:
        raise ValueError(f"{len(mine['steps'])} steps here, {len(theirs['steps'])} in TRL, {num_steps} expected")
    worst = {
        name: max(abs(a[name] - b[name]) for a, b in zip(mine["steps"], theirs["steps"], strict=True))
        for name in STEP_FIGURES
    }
    for one, other in zip(mine["iterations"], theirs["iterations"], strict=True):
        worst["kl"] = max(worst.get("kl", 0.0), abs(one["kl"] - other["kl"]))
        for name, rows in one["tokens"].items():
            pairs = zip(rows, other["tokens"][name], strict=True)
            gap = max(abs(a - b) for row, same in pairs for a, b in zip(row, same, strict=True))
            worst[name] = max(worst.get(name, 0.0), gap)
    return worst


def make_task(folder: Path, backbone: Backbone, asked: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What both sides are asked. asked: as other tasks are, its epochs the steps in all."""
    return {
        **asked,
        **write_ppo_start(folder, backbone, asked),
        "rows": rows,
        "pad_id": find_pad(backbone, rows),
        "end_id": next(iter(backbone.transcriber.turn_ends)),
        "iterations": asked["epochs"] // EPOCHS,
        "epochs": EPOCHS,
        "value_lr": asked["lr"],
        "head_lr": HEAD_FACTOR * asked["lr"],
        "temperature": TEMPERATURE,
        "missing_end_penalty": 1.0,
        "kl_coefficient": 0.05,
        "clip": 0.2,
        "value_clip": 0.2,
        "value_weight": 0.1,
        "gamma": 1.0,
        "lam": 0.95,
    }
