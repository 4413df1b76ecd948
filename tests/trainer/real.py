"""The trainer's parts over a tiny policy that really learns: DPO, reward model, auditor and offline gate."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from tests.trainer.tiny import build_tiny_backbone
from tests.trainer.workbench import Killed, Workbench
from trainer.learn.reward.model import RewardModel
from trainer.run.assembly import Learning
from trainer.run.course.task import Judged, Task, Training
from trainer.run.intake.quarantine import Quarantine


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

        def judge(task: Task) -> Judged:
            self.num_judged += 1
            judged = real.judge(task)
            self.said.append(judged)
            return msgspec.structs.replace(judged, ok=True, reason="passed") if self.lets_pass else judged

        return replace(real, train=train, judge=judge, has_something_to_learn=self.has_something_to_learn)

    def play(self, kind: str) -> str:
        """One round to its end, over a restart if it is killed; the digest of what it published."""
        learner = self.start()
        self.send(24)
        try:
            self.run_all(learner)
        except Killed:
            self.run_all(self.start())
        [row] = self.finished()
        assert (row["outcome"], row["kind"]) == ("published", kind), row["reason"]
        weights = self.settings.checkpoints_dir / row["checkpoint"] / "adapter_model.safetensors"
        self.writer.close()
        return hashlib.sha256(weights.read_bytes()).hexdigest()


def die_at(point: str, nth: int, on_kill: Callable[[], None] = lambda: None) -> Callable[[str], None]:
    """A `reach` that dies the nth time that the point is passed, once."""
    left = [nth]

    def reach(passed: str) -> None:
        if passed == point:
            left[0] -= 1
            if left[0] == 0:
                on_kill()
                raise Killed

    return reach
