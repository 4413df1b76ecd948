"""A trainer's parts over one state directory, light by default: a policy that is bytes, a reward model that counts."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from feedback import faults, inbox, quarantine
from feedback.database import Writer, create_tables, open_database
from feedback.log import NewRecord, Record
from feedback.manifest import Probe
from tests.trainer.fakes import FakeGateway, FakePolicy, FakeReward, make_record
from trainer.learn.reward.version_gate import Comparison
from trainer.run import rounds
from trainer.run.course import round
from trainer.run.course.task import Judged, Task, Training
from trainer.run.intake.clusters import place_rows
from trainer.run.intake.quarantine import Quarantine
from trainer.run.learner import Learner
from trainer.run.publish.publisher import Publisher
from trainer.run.publish.registry import register_missing
from trainer.run.reward.keeper import RewardKeeper
from trainer.run.rows.weighing import weigh_alike
from trainer.run.status.board import Board
from trainer.run.status.metrics import Metrics
from trainer.run.status.requests import RoundRequests
from trainer.settings import TrainerSettings
from trainer.text.labelled_rows import Labelled, LabelledPair
from trainer.text.pairs import Answer, Pair


class Killed(BaseException):
    """Stands for kill -9: nothing below may run any of its own code after it."""


def kill_at(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die the next time this point is passed."""
    left = [point]

    def reach(passed: str) -> None:
        if passed in left:
            left.remove(passed)
            raise Killed

    for module in (round, faults):
        monkeypatch.setattr(module, "reach", reach)


@dataclass
class Workbench:
    """A trainer's parts over one state directory. `start` is what a restart does; `error` is raised in training."""

    settings: TrainerSettings
    gateway: FakeGateway = field(default_factory=FakeGateway)
    policy: Any = field(default_factory=FakePolicy)
    board: Board = field(default_factory=Board)
    requests: RoundRequests = field(default_factory=RoundRequests)
    stopping: threading.Event = field(default_factory=threading.Event)
    trained: list[list[str]] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    num_judged: int = 0
    num_labellings: int = 0
    distrust: str = ""
    may_learn: bool = True
    frozen_prompts: frozenset[str] = frozenset()
    foreseen: list[tuple[str, bool]] = field(default_factory=list)
    verdict: Judged = field(default_factory=lambda: Judged(ok=True, reason="passed"))
    refusal: str = ""
    comparisons: list[Comparison] = field(default_factory=list)
    error: BaseException | None = None
    num_sent: int = 0
    clock: float = 1000.0

    place = staticmethod(place_rows)

    def __post_init__(self) -> None:
        self.database = open_database(self.settings.trainer_database)
        create_tables(self.database, inbox.metadata)
        self.writer = Writer(self.database)

    def start(self) -> Learner:
        self.metrics, quarantined = Metrics(), Quarantine(self.writer, lambda: self.clock)
        self.reward = self.make_reward(quarantined)
        section = self.settings.trainer
        self.keeper = RewardKeeper(
            self.reward,
            self.database,
            self.writer,
            self.settings.reward_dir,
            section.reward,
            section.seed,
            section.policy,
            quarantined,
            edit_weight=section.edit_weight,
            list_frozen_prompts=lambda: self.frozen_prompts,
            figures=lambda heldout: {"heldout": list(heldout)},
            refuse=self.refuse,
        )
        self.quarantine, training = quarantined, self.make_training(quarantined)
        self.publisher = Publisher(
            self.settings.checkpoints_dir,
            training.save,
            self.database,
            self.writer,
            self.gateway,
            base_digest="base",
            rank=16,
            make_probe=lambda: Probe(prompt_token_ids=[1, 2], logprobs=[-1.0], base_logprobs=[-1.0]),
            on_published=self.register,
            now=lambda: self.clock,
        )
        learner = Learner(
            settings=self.settings,
            keeper=self.keeper,
            quarantine=quarantined,
            training=training,
            database=self.database,
            writer=self.writer,
            gateway=self.gateway,
            publisher=self.publisher,
            board=self.board,
            metrics=self.metrics,
            curves=SimpleNamespace(add=lambda *_: None),
            requests=self.requests,
            stopping=self.stopping,
            now=lambda: self.clock,
        )
        learner.prepare()
        return learner

    def refuse(self, figures: Any, since: Comparison) -> str:
        self.comparisons.append(since)
        return self.refusal

    def make_reward(self, quarantined: Quarantine) -> Any:
        return FakeReward()

    def make_training(self, quarantined: Quarantine) -> Training:
        return Training(
            reset=self.policy.reset,
            save=self.policy.save,
            load=self.policy.load,
            weigh=weigh_alike,
            train=self.train,
            judge=self.judge,
            has_something_to_learn=self.has_something_to_learn,
            list_frozen_prompts=lambda: self.frozen_prompts,
            list_foreseen=lambda: self.foreseen,
            label=self.label,
        )

    def label(self, task: Task) -> Labelled:
        """As many pairs as the plan allows, on its first prompts; unless `distrust` says why none."""
        self.num_labellings += 1
        if self.distrust:
            return Labelled(num_prompts=len(task.prompts), reason=self.distrust)
        rows = enumerate(task.prompts[: task.plan.max_labelled])
        pairs = [
            LabelledPair(
                pair=Pair(
                    event_id=f"labelled-{task.plan.number}-{i}",
                    prompt=row.prompt,
                    first=Answer(text=f"first {self.num_labellings}"),
                    second=Answer(text=f"second {self.num_labellings}"),
                    preferred="first",
                    weight=0.75,
                ),
                source=row.event_id,
                probability=0.75,
            )
            for i, row in rows
        ]
        return Labelled(pairs=pairs, num_prompts=len(task.prompts))

    def judge(self, task: Task) -> Judged:
        self.num_judged += 1
        task.show(0.5, "sampling")
        return self.verdict

    def register(self) -> None:
        if not self.gateway.is_down:
            published = [(p.manifest.digest, p.path) for p in self.publisher.published]
            register_missing(self.gateway, published, set())

    def has_something_to_learn(self) -> tuple[bool, str]:
        return self.may_learn, "better than chance" if self.may_learn else "nothing to learn"

    def train(self, task: Task) -> dict[str, float]:
        self.tasks.append(task)
        self.trained.append([row.event_id for row in task.rows])
        task.progress(0.5, {"loss": 0.6})
        if self.error:
            raise self.error
        self.policy.load(task.parent)
        self.policy.adapters["policy"] += f" trained {task.plan.number}".encode()
        return {"loss": 0.4}

    def send(self, number: int, preferred: str = "first") -> None:
        first = self.num_sent
        self.num_sent += number
        self.consume(first, [make_record(n, preferred=preferred) for n in range(first, self.num_sent)])

    def send_records(self, new: list[NewRecord]) -> None:
        """Records of the test's own, behind those sent before."""
        self.num_sent += len(new)
        self.consume(self.num_sent - len(new), new)

    def consume(self, first: int, new: list[NewRecord]) -> None:
        records = [
            Record(
                topic="t", partition=0, offset=first + i, timestamp_ms=0, key=r.key, value=r.value, headers=r.headers
            )
            for i, r in enumerate(new)
        ]
        self.writer.run(lambda connection: inbox.consume(connection, records, place=self.place)).result()

    def run_all(self, learner: Learner) -> None:
        while learner.step():
            pass

    def finished(self) -> list[dict]:
        with self.database.connect() as connection:
            return rounds.list_finished(connection)

    def quarantined(self) -> dict[str, str]:
        """Errors in quarantine by event id."""
        with self.database.connect() as connection:
            return {each.event_id: each.error for each in quarantine.load(connection)}

    def names(self) -> list[str]:
        """Checkpoints that were published."""
        return sorted(path.name for path in self.settings.checkpoints_dir.iterdir() if path.name != "reports")
