"""DPO in float64 by the plainest code there is: every answer a forward of its own, no padding, no sharing, no chunks.

Says which of two float32 sides is nearer to what the numbers are. Shares no code with the trainer; sigmoid loss alone.
"""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

BETA = 0.1


def dpo(asked: dict[str, Any], num_steps: int, dtype: torch.dtype = torch.float64) -> list[dict[str, float]]:
    """The first steps of what `ours.dpo` and the peer are asked, all rows in each: loss, chosen and rejected, mean nats."""
    torch.set_num_threads(asked["threads"])
    base = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=dtype, attn_implementation="eager")
    config = LoraConfig(
        r=asked["rank"], lora_alpha=asked["alpha"], lora_dropout=0.0, target_modules=asked["target_modules"]
    )
    model: Any = get_peft_model(base, config, autocast_adapter_dtype=False).to(dtype)
    set_peft_model_state_dict(model, load_file(asked["adapter"]))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=asked["lr"], betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)

    def score(row: dict[str, list[int]], side: str) -> Tensor:
        ids = torch.tensor([row["prompt_ids"] + row[side]])
        scored = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1], -1)
        return scored.gather(1, ids[0, 1:, None])[len(row["prompt_ids"]) - 1 :].sum()

    with torch.no_grad(), model.disable_adapter():
        references = [score(row, "chosen_ids") - score(row, "rejected_ids") for row in asked["rows"]]
    steps: list[dict[str, float]] = []
    for _ in range(num_steps):
        figures = {"loss": 0.0, "chosen": 0.0, "rejected": 0.0}
        for row, reference in zip(asked["rows"], references, strict=True):
            chosen, rejected = score(row, "chosen_ids"), score(row, "rejected_ids")
            loss = -logsigmoid(BETA * (chosen - rejected - reference)) / len(asked["rows"])
            loss.backward()
            means = {"chosen": chosen / len(references), "rejected": rejected / len(references)}
            for name, value in {"loss": loss, **means}.items():
                figures[name] += value.item()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps.append(figures)
    return steps
