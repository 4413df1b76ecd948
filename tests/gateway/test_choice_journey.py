"""The road of a choice as a state machine: whatever clients and the relay do, each choice has one effect.

The gateway, its database, the relay and the log are real; the engine answers at once. A model in plain dictionaries says
which status each request must get, and what must be in database, log and trainer's store in the end.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from conftest import Running, run_gateway, wait_until
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from feedback import inbox
from feedback.choices import choices, comparisons, count_outbox, load_comparison
from feedback.database import write_transaction
from feedback.events import PREFERRED, Choice, decode_event
from feedback.log import Record, open_log
from feedback.log.base import NUM_PARTITIONS
from tests.feedback.reading import load_preferences
from tests.feedback.stores import opened_store, read_all, try_consume

PAIR = {"x-prefloop-compare": "always", "x-prefloop-user": "ann"}
SPOILED = ("cut", "empty", "nonsense", "claims", "mac", "key", "other")

Verdict = tuple[str, float | None, bool]


class House:
    """A gateway in a thread with a loop of its own, called from hypothesis' synchronous rules."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._running = run_gateway(folder)
        self.gateway: Running = self.do(self._running.__aenter__())

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        self.do(self._running.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def expire(self, comparison_id: str) -> None:
        """Let a comparison's time run out."""
        with write_transaction(self.gateway.context.database) as connection:
            comparison = msgspec.structs.replace(load_comparison(connection, comparison_id), expires_at=1.0)
            row = {"expires_at": 1.0, "body": msgspec.json.encode(comparison)}
            connection.execute(sa.update(comparisons).where(comparisons.c.id == comparison_id).values(row))

    def read_log(self) -> list[Record]:
        """Everything that was said, once the relay has moved it."""
        context = self.gateway.context

        def is_moved() -> bool:
            with context.database.connect() as connection:
                return count_outbox(connection) == 0

        self.do(wait_until(is_moved))
        log = open_log(context.settings.log)
        try:
            return read_all(log, context.settings.topic)
        finally:
            log.close()


@dataclass
class Shown:
    """One comparison as the model knows it."""

    id: str
    token: str
    is_expired: bool = False
    verdict: Verdict | None = None
    acknowledged: list[int] = field(default_factory=list)


def make_machine(house: House) -> type[RuleBasedStateMachine]:
    class Journey(RuleBasedStateMachine):
        shown: Any = Bundle("shown")

        def __init__(self) -> None:
            super().__init__()
            self.known: dict[str, Shown] = {}
            self.folder = TemporaryDirectory()
            self.opened = opened_store(Path(self.folder.name) / "trainer.db")
            self.store = self.opened.__enter__()
            self.delivered: set[str] = set()
            self.begins = dict.fromkeys(range(NUM_PARTITIONS), 0)
            for record in house.read_log():  # of machines before this one
                self.begins[record.partition] = record.offset + 1
            with write_transaction(self.store) as connection:
                for partition, begin in self.begins.items():
                    inbox.record_gap(connection, house.gateway.context.settings.topic, partition, begin)

        @initialize(target=shown)
        def begin(self) -> Any:
            return multiple(*(self.ask() for _ in range(4)))

        @rule(target=shown)
        def ask(self) -> Shown:
            comparison = house.do(house.gateway.ask(PAIR))["comparison"]
            self.known[comparison["id"]] = Shown(comparison["id"], comparison["token"])
            return self.known[comparison["id"]]

        @rule(
            shown=shown,
            preferred=st.sampled_from(PREFERRED),
            strength=st.sampled_from([None, 0.5]),
            harmful=st.booleans(),
            times=st.integers(1, 3),
        )
        def choose(self, shown: Shown, preferred: str, strength: float | None, harmful: bool, times: int) -> None:
            """One request, or the same several times at once: all get the same answer."""
            verdict = (preferred, strength, harmful)
            expected = 410 if shown.is_expired else 200
            if shown.verdict is not None:
                expected = 200 if shown.verdict == verdict else 409  # however late
            statuses = self.send(shown, shown.token, verdict, times)
            assert statuses == [expected] * times, (shown, verdict)
            if expected == 200:
                shown.verdict = verdict

        @rule(shown=shown, verdicts=st.permutations(["first", "second", "tie"]))
        def race(self, shown: Shown, verdicts: list[str]) -> None:
            """Different choices at once: one stands, the others conflict."""

            async def send_all() -> list[int]:
                return await asyncio.gather(*(post(shown.id, shown.token, (v, None, False)) for v in verdicts))

            statuses = house.do(send_all())
            won = [v for v, status in zip(verdicts, statuses, strict=True) if status == 200]
            if shown.verdict is not None:
                assert won == [v for v in verdicts if shown.verdict == (v, None, False)]
                assert set(statuses) <= {200, 409}
            elif shown.is_expired:
                assert statuses == [410] * 3
            else:
                assert sorted(statuses) == [200, 409, 409]
                shown.verdict = (won[0], None, False)

        @rule(shown=shown, how=st.sampled_from((*SPOILED, "other", "other")), preferred=st.sampled_from(PREFERRED))
        def forge(self, shown: Shown, how: str, preferred: str) -> None:
            """No token but the comparison's own is good for anything, and nothing is stored."""
            other = next((one.token for one in self.known.values() if one is not shown), "")
            token = other if how == "other" else spoil(shown.token, how)
            assert self.send(shown, token, (preferred, None, False), 1) == [401]

        @rule(shown=shown, unknown=st.integers(0, 2**64))
        def ask_for_unknown(self, shown: Shown, unknown: int) -> None:
            status = house.do(post(f"cmp_{unknown:032x}", shown.token, ("first", None, False)))
            assert status == 401  # the token is of another comparison

        @rule(shown=consumes(shown), target=shown)
        def wait_too_long(self, shown: Shown) -> Shown:
            house.expire(shown.id)
            shown.is_expired = True
            return shown

        @rule(ahead=st.integers(-5, 1), num=st.integers(1, 8), seed=st.integers(0, 9))
        def deliver(self, ahead: int, num: int, seed: int) -> None:
            """The trainer is given a batch of each partition: again, out of order, or one that lies too far on."""
            everything = house.read_log()
            with self.store.connect() as connection:
                offsets = inbox.load_offsets(connection, house.gateway.context.settings.topic)
            for partition, begin in self.begins.items():
                records = [record for record in everything if record.partition == partition]
                stands_at = offsets.get(partition, 0)
                start = max(0, stands_at + ahead)
                batch = records[start : start + num]
                shuffled = batch[:1] + batch  # one of them twice
                random.Random(seed).shuffle(shuffled)
                taken = try_consume(self.store, shuffled)
                assert taken == (not batch or start <= stands_at)
                if taken:
                    self.delivered |= {record.key.decode() for record in batch if record.offset >= begin}

        @invariant()
        def the_trainer_has_what_was_delivered_once(self) -> None:
            with self.store.connect() as connection:
                stored = [row.choice.comparison.id for row in load_preferences(connection)]
            assert len(stored) == len(set(stored))
            assert self.delivered & self.known.keys() <= set(stored)

        def teardown(self) -> None:
            try:
                self.check_everything()
            finally:
                self.opened.__exit__(None, None, None)
                self.folder.cleanup()

        def check_everything(self) -> None:
            """Database, log and, after all is delivered, the trainer's store: each choice is there once, no other."""
            expected = {one.id: one.verdict for one in self.known.values() if one.verdict is not None}
            with house.gateway.context.database.connect() as connection:
                rows = connection.execute(sa.select(choices)).all()
            found = {
                r.comparison_id: (r.preferred, r.strength, r.harmful) for r in rows if r.comparison_id in self.known
            }
            assert found == expected
            records = house.read_log()
            said = [
                choice for record in records if (choice := read_choice(record)) and choice.comparison.id in self.known
            ]
            assert sorted(choice.comparison.id for choice in said) == sorted(expected)
            assert {choice.comparison.id: verdict_of(choice) for choice in said} == expected
            assert try_consume(self.store, records)
            assert try_consume(self.store, records)  # all of it once more
            with self.store.connect() as connection:
                kept = [row.choice for row in load_preferences(connection)]
                assert inbox.count_dead_letters(connection) == 0
            trained = [choice for choice in kept if choice.comparison.id in self.known]
            assert sorted(choice.comparison.id for choice in trained) == sorted(expected)
            assert {choice.comparison.id: verdict_of(choice) for choice in trained} == expected

        def send(self, shown: Shown, token: str, verdict: Verdict, times: int) -> list[int]:
            async def send_all() -> list[int]:
                return await asyncio.gather(*(post(shown.id, token, verdict) for _ in range(times)))

            statuses: list[int] = house.do(send_all())
            return statuses

    async def post(comparison_id: str, token: str, verdict: Verdict) -> int:
        preferred, strength, harmful = verdict
        body = {"preferred": preferred, "token": token, "strength": strength, "harmful": harmful}
        url = f"{house.gateway.url}/v1/comparisons/{comparison_id}/choice"
        async with house.gateway.http.post(url, json=body) as answer:
            await answer.read()
            return answer.status

    return Journey


def spoil(token: str, how: str) -> str:
    """A token as a forger might send it; never the same."""
    version, key_id, claims, mac = token.split(".")
    other = "B" if claims[5] == "A" else "A"
    changed = f"{claims[:5]}{other}{claims[6:]}"
    return {
        "cut": token[:-1],
        "empty": "",
        "nonsense": "ct1.a.b.c",
        "claims": f"{version}.{key_id}.{changed}.{mac}",
        "mac": f"{version}.{key_id}.{claims}.{'A' * len(mac)}",
        "key": f"{version}.nobody.{claims}.{mac}",
    }[how]


def read_choice(record: Record) -> Choice | None:
    data = decode_event(record.headers, record.value).data
    return data if isinstance(data, Choice) else None


def verdict_of(choice: Choice) -> Verdict:
    return choice.preferred, choice.strength, choice.harmful


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


def test_every_choice_has_one_effect_whatever_happens_on_its_way(house: House) -> None:
    run_state_machine_as_test(
        make_machine(house),
        settings=settings(
            max_examples=80,
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.generate],  # shrinking a walk over HTTP takes minutes
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
