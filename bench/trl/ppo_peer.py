"""TRL's PPOTrainer on samples that the bench gives: run by the python of an environment with trl 1.12.0, the last that has it.

Generation and the reward are stubs, the optimizer is AdamW with a rate for each part; all else is TRL's own `train`, whose
variables are read as it calls `backward`. What is changed in it stands in `changed`.
"""

import functools
import inspect
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    set_seed,
)
from trl import __version__ as trl_version
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from worker import serve

Row = dict[str, Any]
AFTER_LAST = "sequence_lengths_p1 = sequence_lengths + 1"
AT_LAST = "sequence_lengths_p1 = sequence_lengths"
MASKED_VAR = ppo_trainer.masked_var


class GivenReward(nn.Module):
    """A reward model whose score of a row is looked up by its ids; TRL adds nothing to it but what its own code does."""

    base_model_prefix = "backbone"

    def __init__(self, rewards: dict[tuple[int, ...], float]) -> None:
        super().__init__()
        self._rewards = rewards
        self._found = torch.zeros(0)

    def backbone(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        keys = [tuple(ids[mask].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        self._found = torch.tensor([self._rewards[key] for key in keys])
        return SimpleNamespace(hidden_states=[input_ids])

    def score(self, hidden: Tensor) -> Tensor:
        return self._found[:, None, None].expand(*hidden.shape, 1).clone()


class ScaledHead(nn.Module):
    """A linear score whose weights count by the root of their number, as this project's value head has it."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, states: Tensor) -> Tensor:
        return states @ self.weight.T / states.shape[-1] ** 0.5 + self.bias


def read_given(rows: list[Row], pad_id: int) -> Any:
    """A stand-in for TRL's batch_generation: a given answer to each query, and the policy's logits for it, at the temperature."""
    longest = max(len(row["answer_ids"]) for row in rows)

    @torch.no_grad()
    def give(policy: nn.Module, queries: Tensor, size: int, pad: int, config: Any) -> tuple[Tensor, Tensor]:
        assert pad == pad_id
        answers: dict[tuple[int, ...], list[list[int]]] = {}
        for row in rows:
            answers.setdefault(tuple(row["prompt_ids"]), []).append(row["answer_ids"])
        found = [answers[tuple(query[query != pad].tolist())].pop() for query in queries]
        responses = torch.tensor([answer + [pad] * (longest - len(answer)) for answer in found])
        whole = torch.cat([queries, responses], 1)
        logits = ppo_trainer.forward(policy, whole, pad).logits[:, queries.shape[1] - 1 : -1]
        return whole, logits / config.temperature

    return give


def changed(asked: dict[str, Any]) -> Callable[[PPOTrainer], None]:
    """PPOTrainer.train with TRL's own switch for population variance, and, where that is asked, with an answer's score at its
    last token (TRL's own: behind it, in a state with a value, unless the answer is as long as the longest)."""
    train = PPOTrainer.train
    ppo_trainer.masked_var = functools.partial(MASKED_VAR, unbiased=False)
    if asked["reward_at_last_token"]:
        source = inspect.getsource(train)
        assert source.count(AFTER_LAST) == 1
        scope: dict[str, Any] = {}
        exec("class Changed:\n" + source.replace(AFTER_LAST, AT_LAST), vars(ppo_trainer), scope)
        train = scope["Changed"].train
    return train


class Recorder:
    """Called in the place of the accelerator's backward: keeps what TRL's `train` has computed, by row and token."""

    def __init__(self, rows: list[Row], pad_id: int) -> None:
        self.steps: list[dict[str, float]] = []
        self.iterations: list[dict[str, Any]] = []
        self._places = {tuple(row["prompt_ids"] + row["answer_ids"]): i for i, row in enumerate(rows)}
        self._pad_id, self._seen = pad_id, torch.zeros(0)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        names = sys._getframe(1).f_locals
        kept = ~names["padding_mask"][names["micro_batch_inds"]]
        squares = names["logprobs_diff"].detach().square()
        self.steps.append(
            {
                "loss": loss.item(),
                "policy_loss": names["pg_loss"].item(),
                "value_loss": names["vf_loss"].item(),
                "approximate_kl": 0.5 * squares[kept].mean().item(),  # TRL's own divides by the padding, too
                "clip_share": (names["pg_losses2"] > names["pg_losses"])[kept].float().mean().item(),
                "value_clip_share": names["vf_clipfrac"].item(),
            }
        )
        if names["advantages"] is not self._seen:
            self._seen = names["advantages"]
            self.iterations.append(self._read(names))

    def _read(self, names: dict[str, Any]) -> dict[str, Any]:
        """tokens: per answer token, in the order of the rows."""
        order = [self._places[tuple(ids[ids != self._pad_id].tolist())] for ids in names["query_responses"]]
        kept = ~names["padding_mask"]
        tokens: dict[str, list[list[float]]] = {}
        for name in ("advantages", "returns", "values", "logprobs"):
            rows = {i: names[name][place][kept[place]].tolist() for place, i in enumerate(order)}
            tokens[name] = [rows[i] for i in range(len(rows))]
        return {"tokens": tokens, "kl": names["kl"].sum(1).mean().item()}


def lora(asked: dict[str, Any]) -> LoraConfig:
    return LoraConfig(
        r=asked["rank"], lora_alpha=asked["alpha"], lora_dropout=0.0, target_modules=asked["target_modules"]
    )


def build_value_model(asked: dict[str, Any]) -> nn.Module:
    """The base under an adapter of its own, with a head on the last hidden states."""
    model = AutoModelForSequenceClassification.from_pretrained(
        asked["model"], dtype=torch.float32, attn_implementation="sdpa", num_labels=1
    )
    model = inject_adapter_in_model(lora(asked), model)
    weights = load_file(asked["value_adapter"])
    set_peft_model_state_dict(model, {name.removeprefix("base_model.model."): w for name, w in weights.items()})
    model.score = ScaledHead(**load_file(asked["value_head"]))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == len(weights) + 2, "adapter and head, and nothing else"
    return model


def build_policy(asked: dict[str, Any]) -> nn.Module:
    """The base under an adapter; with the adapter off it is the reference."""
    base = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32, attn_implementation="sdpa")
    model = get_peft_model(base, lora(asked))
    set_peft_model_state_dict(model, load_file(asked["adapter"]))
    return model


def build_optimizer(asked: dict[str, Any], policy: nn.Module, value: nn.Module) -> Any:
    """AdamW and a constant schedule."""
    head = {id(parameter) for parameter in value.score.parameters()}
    groups = [
        {"params": [p for p in policy.parameters() if p.requires_grad], "lr": asked["lr"]},
        {"params": [p for p in value.parameters() if p.requires_grad and id(p) not in head], "lr": asked["value_lr"]},
        {"params": list(value.score.parameters()), "lr": asked["head_lr"]},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def build_trainer(asked: dict[str, Any], folder: str) -> PPOTrainer:
    rows, tokenizer = asked["rows"], AutoTokenizer.from_pretrained(asked["model"], padding_side="left")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(asked["pad_id"])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(asked["end_id"])
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (asked["pad_id"], asked["end_id"])
    config = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=len(rows),
        gradient_accumulation_steps=1,
        total_episodes=asked["iterations"] * len(rows),
        num_ppo_epochs=asked["epochs"],
        num_mini_batches=1,
        num_sample_generations=0,
        temperature=asked["temperature"],
        response_length=max(len(row["answer_ids"]) for row in rows),
        stop_token="eos",
        missing_eos_penalty=asked["missing_end_penalty"],
        kl_coef=asked["kl_coefficient"],
        kl_estimator="k1",
        cliprange=asked["clip"],
        cliprange_value=asked["value_clip"],
        vf_coef=asked["value_weight"],
        gamma=asked["gamma"],
        lam=asked["lam"],
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    rewards = {tuple(row["prompt_ids"] + row["answer_ids"]): row["reward"] for row in rows}
    policy, value = build_policy(asked), build_value_model(asked)
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=GivenReward(rewards),
        train_dataset=Dataset.from_list([{"input_ids": row["prompt_ids"]} for row in rows]),
        value_model=value,
        optimizers=build_optimizer(asked, policy, value),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def run_ppo(asked: dict[str, Any]) -> dict[str, Any]:
    """rows: [{prompt_ids, answer_ids, reward}], pad_id in none of them. One step an epoch."""
    torch.set_num_threads(asked["threads"])
    set_seed(0)
    ppo_trainer.batch_generation = read_given(asked["rows"], asked["pad_id"])
    recorder, train = Recorder(asked["rows"], asked["pad_id"]), changed(asked)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(asked, folder)
        trainer.accelerator.backward = recorder.backward
        train(trainer)
    return {"steps": recorder.steps, "iterations": recorder.iterations, "trl": trl_version}


if __name__ == "__main__":
    serve({"ppo": run_ppo})
