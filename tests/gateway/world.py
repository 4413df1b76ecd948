"""A gateway's rollouts over a real database, with a swap and a clock of the test's own."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from feedback.choices import store_comparison
from feedback.database import Writer, create_tables, metadata, open_database
from feedback.events import Candidate, Comparison
from feedback.manifest import Manifest, Probe, checkpoint_id, combine_hashes, hash_files, write_manifest
from gateway.engines.deployment import Deployment
from gateway.errors import SwapError
from gateway.rollout.assessment import Assessor
from gateway.rollout.controller import Controller
from gateway.rollout.desired_state import name_observed
from gateway.rollout.membership import Membership
from gateway.rollout.pure import machine
from gateway.settings import GatewaySettings
from gateway.tables.checkpoints import CheckpointRow, get_checkpoint
from gateway.tables.rollouts import list_rollouts
from gateway.tables.rows import RolloutRow
from tests.feedback.reading import record_choice


class FakeSwap:
    """Remembers what is loaded; refuses what it is told to."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.expected_now: set[str] = set()
        self.refuses: dict[str, bool] = {}
        self.num_refused = 0
        self.loading: frozenset[str] = frozenset()
        self.blocked: dict[str, asyncio.Event] = {}  # loads that wait
        self.while_unloading: Callable[[], object] = lambda: None

    async def load(self, checkpoint: CheckpointRow) -> float:
        if checkpoint.id in self.blocked:
            self.loading |= {checkpoint.id}
            await self.blocked[checkpoint.id].wait()
            self.loading -= {checkpoint.id}
        if checkpoint.id in self.refuses:
            self.num_refused += 1
            raise SwapError("refused", is_transient=self.refuses[checkpoint.id])
        if checkpoint.id not in self.loaded:
            self.loaded.append(checkpoint.id)
        self.expected_now.add(checkpoint.id)
        return 0.01

    def use_registered(self, engines: dict[str, str]) -> None:
        assert not engines

    async def unload(self, checkpoint: CheckpointRow) -> None:
        self.loading: frozenset[str] = frozenset()
        self.blocked: dict[str, asyncio.Event] = {}  # loads that wait
        self.while_unloading()
        self.release(checkpoint.id)
        self.loaded = [name for name in self.loaded if name != checkpoint.id]

    @property
    def expected(self) -> frozenset[str]:
        return frozenset(self.expected_now)

    @property
    def held(self) -> frozenset[str]:
        return frozenset(self.expected_now) | self.loading

    def is_expected(self, checkpoint: str) -> bool:
        return checkpoint in self.expected_now

    def release(self, checkpoint: str) -> None:
        self.expected_now.discard(checkpoint)


class World:
    """One gateway's rollout side with a clock that tests turn."""

    def __init__(self, root: Path, **rollout: object) -> None:
        self.root, self.time = root, 1000.0
        self.engine = open_database(f"sqlite:{root / 'gateway.db'}")
        create_tables(self.engine, metadata)
        self.writer = Writer(self.engine)
        given = {"auto_approve": True, "approve_countdown_s": 5.0, **rollout}
        self.settings = GatewaySettings(preset="demo", state_dir=root, rollout=given)  # type: ignore[arg-type]
        self.num_shown = 0
        self.restart()

    def restart(self) -> None:
        """A new process: engines, memory and controller are fresh, the database is not."""
        self.swap = FakeSwap()
        self.deployment = Deployment(["http://engine"])
        clock = lambda: self.time  # noqa: E731
        self.membership = Membership(self.writer, self.deployment, self.swap, self.settings, clock)  # type: ignore[arg-type]
        self.controller = Controller(self.writer, self.swap, self.deployment, self.membership, self.settings, clock)  # type: ignore[arg-type]
        self.observed = self.controller.observations
        self.controller.assessor = Assessor(self.writer, "demo", clock, cpu_clock=lambda: 0.0)  # every tick weighs
        self.has_joined = False

    def close(self) -> None:
        self.writer.close()
        self.engine.dispose()

    async def tick(self, seconds: float = 0.5) -> None:
        self.time += seconds
        if not self.has_joined:
            await self.membership.join(is_alone=True)
            self.has_joined = True
        await self.membership.send_heartbeat()
        await self.controller.tick(self.time)

    async def publish(self, number: int) -> str:
        folder = self.root / f"c{number}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(f'{{"n": {number}}}')
        files = hash_files(folder)
        digest = combine_hashes(files)
        manifest = Manifest(
            id=checkpoint_id(number, digest), number=number, parent=None, base_digest="b", rank=8, digest=digest,
            files=files, created_at=self.time,
            probe=Probe(prompt_token_ids=[1, 2], logprobs=[-1.0], base_logprobs=[-2.0]),
        )  # fmt: skip
        write_manifest(folder, manifest)
        row, _ = await self.controller.registry.register(str(folder))
        return row.id

    async def row(self) -> RolloutRow:
        return (await self.writer.arun(list_rollouts))[0]

    async def status(self, checkpoint: str) -> str:
        row = await self.writer.arun(lambda conn: get_checkpoint(conn, checkpoint))
        assert row is not None
        return row.status

    async def duel(
        self, users: range, num_wins_of_3: int, tags: dict[str, str] | None = None, said: str = "canary"
    ) -> None:
        """Every user duels three times and the canary wins that many; their first requests were clean.

        tags: what the app says of the requests. said: the canary's answers; stable's are "stable".
        """
        row = await self.row()
        for user in users:
            for arm in ("stable", "canary"):
                self.observed.record(name_observed(row), f"u{user}", arm, False, False, False, 0.1, answered="duel")
            for n in range(3):
                await self.choose(row, f"u{user}", n < num_wins_of_3, tags, said)

    async def choose(
        self, row: RolloutRow, user: str, canary_wins: bool, tags: dict[str, str] | None = None, said: str = "canary"
    ) -> None:
        self.num_shown += 1
        is_first = hashlib.sha256(str(self.num_shown).encode()).digest()[0] % 2 == 0
        arms = ("canary", "stable") if is_first else ("stable", "canary")
        first, second = (
            Candidate(
                completion_id=f"{self.num_shown}-{arm}", text=said if arm == "canary" else arm, checkpoint=arm, digest=arm, arm=arm,
                finish_reason="stop", prompt_tokens=1, completion_tokens=1, seed=1, temperature=1.0, max_tokens=9,
            )
            for arm in arms
        )  # fmt: skip
        comparison = Comparison(
            id=f"cmp{self.num_shown}", policy="default", app="a", user=user, conversation="c",
            messages=[{"role": "user", "content": "q"}], first=first, second=second, asked="duel", propensity=1.0,
            engine="e", rollout=row.id, weight=0.5, created_at=self.time + self.num_shown * 1e-6,
            expires_at=self.time + 3600, tags=tags or {},
        )  # fmt: skip
        preferred = "first" if canary_wins == is_first else "second"

        def write(conn: object) -> None:
            store_comparison(conn, comparison)  # type: ignore[arg-type]
            record_choice(conn, comparison.id, preferred, None, False, "test", self.time + 0.1)  # type: ignore[arg-type]

        await self.writer.arun(write)

    async def started(self) -> tuple[str, str]:
        """Publish two checkpoints and walk until the second is on trial."""
        old = await self.publish(0)
        await self.tick()
        new = await self.publish(1)
        await self.tick()
        assert (await self.row()).phase == machine.PROGRESSING
        return old, new
