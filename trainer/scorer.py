"""Starts the scorer: `python -m trainer.scorer`. It says for the gateway which of a few answers to ask about.

A process of its own with its own copy of the base, so that no round makes a request wait. Reads the base and the reward
model's states, and writes nothing. Can be killed at any point: without it, asks are random.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TYPE_CHECKING

from feedback.settings import load_settings
from trainer.process import is_base_ready, limit_kept_primitives, stop_on_signals
from trainer.run.publish.checkpoints import digest_base
from trainer.run.reward.states import RewardStates
from trainer.run.status.server import start_server
from trainer.settings import TrainerSettings

if TYPE_CHECKING:
    from trainer.run.reward.scoring import Scorer

log = logging.getLogger("trainer.scorer")


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    stopping = threading.Event()
    stop_on_signals(stopping)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_settings(TrainerSettings)
    section = settings.trainer.scorer
    limit_kept_primitives()

    # Brings torch, whose threads must find the signals blocked.
    from trainer.run.reward.scoring_pages import ScoringPages

    pages = ScoringPages(f"no base policy in {settings.base} yet")
    server = start_server(section.host, section.port, pages, section.max_body_bytes)
    log.info("scoring on http://%s:%d/score", section.host, server.server_port)
    while not is_base_ready(settings):
        if stopping.wait(1.0):
            return 0
    pages.waits_for = "loading the base policy"
    pages.scorer = scorer = build_scorer(settings)
    while True:
        scorer.refresh()
        if stopping.wait(section.reload_every_s):
            break
    server.shutdown()
    log.info("stopped")
    return 0


def build_scorer(settings: TrainerSettings) -> Scorer:
    """Load the base, with a reward model that has learnt nothing yet."""
    import torch

    from trainer.learn.reward.model import RewardModel
    from trainer.model.backbone import Backbone
    from trainer.run.reward.scoring import Scorer

    section = settings.trainer
    torch.set_num_threads(section.scorer.torch_threads)
    backbone = Backbone.load(
        settings.base,
        section.model,
        seed=section.seed,
        device=section.scorer.device,
        engine_share=settings.engine_gpu_share,
    )
    base_digest = digest_base(settings.base, str(getattr(backbone.causal_lm.config, "_commit_hash", "") or ""))
    reward = RewardModel(backbone, section.reward, seed=section.seed)
    return Scorer(reward, RewardStates(settings.reward_dir / base_digest[:12]), section.scorer.max_waiting)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # torch takes seconds to take itself down, and there is nothing left to keep
