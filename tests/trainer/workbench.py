"""A trainer's parts over one state directory, light by default: a policy that is bytes, a reward model that counts."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from feedback import inbox, quarantine
from feedback.database import Writer, create_tables, open_database
from feedback.log import NewRecord, Record
from feedback.manifest import Probe
from tests.trainer.fakes import FakeGateway, FakeReward, FakeStack, make_record
from trainer.run import rounds
from trainer.run.clusters import place_rows
from trainer.run.learner import Learner
from trainer.run.metrics import Metrics
from trainer.run.publisher import Publisher
from trainer.run.quarantine import Quarantine
from trainer.run.registry import register_missing
from trainer.run.reward_keeper import RewardKeeper
from trainer.run.round import Training
from trainer.run.status import Board
from trainer.settings import TrainerSettings


class Killed(BaseException):
    """Stands for kill -9: nothing below may run any of its own code after it."""


@dataclass
class Workbench:
    """A trainer's parts over one state directory. `start` is what a restart does; kill_in_training plays kill -9."""

    settings: TrainerSettings
    gateway: FakeGateway = field(default_factory=FakeGateway)
    stack: Any = field(default_factory=FakeStack)
    board: Board = field(default_factory=Board)
    stopping: threading.Event = field(default_factory=threading.Event)
    trained: list[list[str]] = field(default_factory=list)
    may_learn: bool = True
    verdict: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(ok=True, reason="passed", metrics={}))
    error: BaseException | None = None
    num_sent: int = 0
    clock: float = 1000.0

    place = staticmethod(place_rows)

    def __post_init__(self) -> None:
        self.database = open_database(self.settings.trainer_database)
        create_tables(self.database, inbox.metadata)
        self.writer = Writer(self.database)

    def start(self) -> Learner:
        self.metrics, quarantined = Metrics(), Quarantine(self.writer)
        self.reward = self.make_reward(quarantined)
        section = self.settings.trainer
        directory = self.settings.reward_dir
        keeper = RewardKeeper(
            self.reward, self.database, self.writer, directory, section.reward, section.seed, quarantined
        )
        self.publisher = Publisher(
            self.settings,
            self.stack,
            self.database,
            self.gateway,
            base_digest="base",
            rank=16,
            make_probe=lambda: Probe(prompt_token_ids=[1, 2], logprobs=[-1.0], base_logprobs=[-1.0]),
            on_published=self.register,
            now=lambda: self.clock,
        )
        learner = Learner(
            settings=self.settings,
            stack=self.stack,
            keeper=keeper,
            quarantine=quarantined,
            training=Training(self.make_train(quarantined), self.judge, self.has_something_to_learn),
            database=self.database,
            writer=self.writer,
            gateway=self.gateway,
            publisher=self.publisher,
            board=self.board,
            metrics=self.metrics,
            curves=SimpleNamespace(add=lambda *_: None),
            stopping=self.stopping,
            now=lambda: self.clock,
        )
        learner.prepare()
        return learner

    def make_reward(self, quarantined: Quarantine) -> Any:
        return FakeReward()

    def make_train(self, quarantined: Quarantine) -> Any:
        return self.train

    def judge(self) -> Any:
        return self.verdict

    def register(self) -> None:
        if not self.gateway.is_down:
            published = [(p.manifest.digest, p.path) for p in self.publisher.published]
            register_missing(self.gateway, published, set())

    def has_something_to_learn(self, correct: int, total: int) -> tuple[bool, str]:
        return self.may_learn, "better than chance" if self.may_learn else "nothing to learn"

    def train(self, pairs, rng, progress) -> dict[str, float]:
        self.trained.append([pair.event_id for pair in pairs])
        progress(0.5, {"loss": 0.6})
        if self.error:
            raise self.error
        self.stack.adapters["policy"] += f" trained {len(self.trained)}".encode()
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
        return sorted(path.name for path in self.settings.checkpoints_dir.iterdir())
