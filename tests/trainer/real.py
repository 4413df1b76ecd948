"""The trainer's parts over a tiny policy that really learns: DPO, reward model, auditor and offline gate."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from tests.trainer.tiny import build_tiny_backbone
from tests.trainer.workbench import Workbench
from trainer.learn.reward import RewardModel
from trainer.run.assembly import Learning
from trainer.run.quarantine import Quarantine
from trainer.run.training import Judged, Show, Task, Training


@dataclass
class RealWorkbench(Workbench):
    """`lets_pass`: every checkpoint passes the gate, whose verdict is in `said`; every choice is worth a round."""

    policy: Any = None
    lets_pass: bool = True
    said: list[Judged] = field(default_factory=list)

    def make_reward(self, quarantined: Quarantine) -> Any:
        """A process that starts loads everything anew."""
        self.backbone = build_tiny_backbone()
        return RewardModel(self.backbone, self.settings.trainer.reward, reject=quarantined.add)

    def make_training(self, quarantined: Quarantine) -> Training:
        self.learning = Learning(self.settings, self.backbone, self.reward, self.database, "base", quarantined.add)
        real = self.learning.make_training()

        def train(task: Task) -> dict[str, float]:
            self.tasks.append(task)
            self.trained.append([row.event_id for row in task.rows])
            return real.train(task)

        def judge(task: Task, show: Show) -> Judged:
            self.num_judged += 1
            judged = real.judge(task, show)
            self.said.append(judged)
            return msgspec.structs.replace(judged, ok=True, reason="passed") if self.lets_pass else judged

        return replace(real, train=train, judge=judge, has_something_to_learn=self.has_something_to_learn)
