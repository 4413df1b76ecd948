"""TRL's trainers on token ids that the bench gives: run by the python of TRL's own environment, as a worker.

TRL prepares nothing here: prompts and answers come as ids, so that both sides learn from the same tokens. `record` keeps the
loss and mean log-probabilities of every step; `seconds` are from the trainer's construction to the end of its training.
"""

import gc
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    set_seed,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl import __version__ as trl_version
from worker import Clock, forget_peak_memory, read_peak_mb, serve


class RecordingDpo(DPOTrainer):
    """Takes token ids as they are."""

    steps: list[dict[str, float]]

    def _prepare_dataset(self, dataset: Dataset, *arguments: Any, **options: Any) -> Dataset:
        return dataset

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        loss = super().compute_loss(*arguments, **options)
        if self.args.logging_steps == 1:
            seen = self._metrics["train"]
            self.steps.append(
                {"loss": loss.item(), "chosen": seen["logps/chosen"][-1], "rejected": seen["logps/rejected"][-1]}
            )
        return loss


class RecordingReward(RewardTrainer):
    """Keeps every step's loss and margin."""

    steps: list[dict[str, float]]

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        loss = super().compute_loss(*arguments, **options)
        if self.args.logging_steps == 1:
            self.steps.append({"loss": loss.item(), "margin": self._metrics["train"]["margin"][-1]})
        return loss


class RecordingSft(SFTTrainer):
    """Keeps every step's loss."""

    steps: list[dict[str, float]]

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        loss = super().compute_loss(*arguments, **options)
        self.steps.append({"loss": loss.item()})
        return loss


def common(asked: dict[str, Any], folder: str) -> dict[str, Any]:
    """What every trainer is told. gradient_checkpointing None leaves TRL's default."""
    given: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": asked["batch_size"],
        "num_train_epochs": asked["epochs"],
        "learning_rate": asked["lr"],
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.99,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": asked["bf16"],
        "use_cpu": asked["device"] == "cpu",
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_length": None,
        "logging_steps": 1 if asked["record"] else 10,
    }
    if asked["best"]:
        given |= {
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
            "remove_unused_columns": False,  # the sampler reads the lengths
        }
    return given


def load(asked: dict[str, Any], kind: Any, **options: Any) -> Any:
    """The model in the dtype that both sides hold their weights in."""
    dtype = torch.bfloat16 if asked["device"] == "cuda" and asked["bf16"] else torch.float32
    if asked.get("float64"):
        dtype = torch.float64
    return kind.from_pretrained(asked["model"], dtype=dtype, attn_implementation="sdpa", **options).to(asked["device"])


def lora(asked: dict[str, Any], task_type: str, **options: Any) -> LoraConfig:
    targets = asked["target_modules"]
    return LoraConfig(
        r=asked["rank"],
        lora_alpha=asked["alpha"],
        lora_dropout=0.0,
        target_modules=targets,
        task_type=task_type,
        **options,
    )


def measure(asked: dict[str, Any], build: Any, *, is_reward: bool = False) -> dict[str, Any]:
    """Construct, give the adapter its first weights, train. build(folder) returns the trainer."""
    torch.set_num_threads(asked["threads"])
    set_seed(0)
    first_weights = load_file(asked["adapter"])
    if is_reward:
        first_weights["base_model.model.score.weight"] = load_file(asked["head"])["weight"]
    gc.collect()
    forget_peak_memory()
    if asked["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        trainer = build(folder)
        trainer.steps = []
        trainer.remove_callback(PrinterCallback)
        set_peft_model_state_dict(trainer.model, first_weights)
        constructed = clock.read()
        trainer.train()
        if asked["device"] == "cuda":
            torch.cuda.synchronize()
        seconds = clock.read()
    peak_gpu_mb = torch.cuda.max_memory_allocated() / 2**20 if asked["device"] == "cuda" else 0.0
    return {
        **seconds,
        "construct_s": constructed["wall_s"],
        "rss_mb": read_peak_mb(),
        "gpu_mb": peak_gpu_mb,
        "steps": trainer.steps,
        "trl": trl_version,
    }


def run_dpo(asked: dict[str, Any]) -> dict[str, Any]:
    """rows: [{prompt_ids, chosen_ids, rejected_ids}]. With load_inside the model is loaded within the measured time."""
    rows = [{**row, "length": len(row["prompt_ids"]) + len(row["chosen_ids"])} for row in asked["rows"]]
    dataset, tokenizer = Dataset.from_list(rows), AutoTokenizer.from_pretrained(asked["model"])
    model = None if asked["load_inside"] else load(asked, AutoModelForCausalLM)

    def build(folder: str) -> DPOTrainer:
        config = DPOConfig(**common(asked, folder), **asked["dpo"], precompute_ref_log_probs=asked["best"])
        return RecordingDpo(
            model=model or load(asked, AutoModelForCausalLM),
            args=config,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=lora(asked, "CAUSAL_LM"),
        )

    return measure(asked, build)


def run_reward(asked: dict[str, Any]) -> dict[str, Any]:
    """rows: [{chosen_ids, rejected_ids}], prompts included; `head` is a safetensors file with the linear head's weight."""
    rows = [{**row, "length": len(row["chosen_ids"])} for row in asked["rows"]]
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    model = load(asked, AutoModelForSequenceClassification, num_labels=1)

    def build(folder: str) -> RewardTrainer:
        return RecordingReward(
            model=model,
            args=RewardConfig(**common(asked, folder), center_rewards_coefficient=asked["centre_weight"]),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora(asked, "SEQ_CLS", modules_to_save=["score"]),
        )

    return measure(asked, build, is_reward=True)


def run_sft(asked: dict[str, Any]) -> dict[str, Any]:
    """rows: [{input_ids, completion_mask}]."""
    rows = [{**row, "length": len(row["input_ids"])} for row in asked["rows"]]

    def build(folder: str) -> SFTTrainer:
        return RecordingSft(
            model=load(asked, AutoModelForCausalLM),
            args=SFTConfig(**common(asked, folder), completion_only_loss=True, packing=False),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(asked["model"]),
            peft_config=lora(asked, "CAUSAL_LM"),
        )

    return measure(asked, build)


def finish(answer: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinities."""
    assert all(math.isfinite(value) for step in answer["steps"] for value in step.values())
    return answer


if __name__ == "__main__":
    serve(
        {
            "dpo": lambda asked: finish(run_dpo(asked)),
            "reward": lambda asked: finish(run_reward(asked)),
            "sft": lambda asked: finish(run_sft(asked)),
        }
    )
