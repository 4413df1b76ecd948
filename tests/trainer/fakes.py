"""Light stand-ins for what the trainer's parts are given: a policy that is three bytes, a gateway that is a list."""

from dataclasses import replace
from pathlib import Path

from feedback.events import Candidate, Choice, Comparison, encode_event, new_event
from feedback.log.base import NewRecord
from feedback.manifest import read_manifest
from trainer.learn.reward.prequential import Foreseen, Prequential
from trainer.run.publish.registry import GatewayRefused, GatewayUnavailable, RegisteredCheckpoint, ServingState
from trainer.text.pairs import Pair, Rated


def make_choice(number: int, *, preferred: str = "first", user: str = "", chosen_at: float = 0.0) -> Choice:
    def candidate(place: str) -> Candidate:
        return Candidate(
            completion_id=f"{place}-{number}",
            text=f"{place} answer {number}",
            checkpoint="c-000000-000000000000",
            digest="d",
            arm="stable",
            finish_reason="stop",
            prompt_tokens=3,
            completion_tokens=3,
        )

    comparison = Comparison(
        id=f"cmp-{number}",
        policy="default",
        app="app",
        user=user or f"user-{number}",
        conversation="",
        messages=[{"role": "user", "content": f"question {number}"}],
        first=candidate("first"),
        second=candidate("second"),
        asked="explore",
        propensity=1.0,
        engine="e",
        created_at=0.0,
        expires_at=1.0,
    )
    return Choice(
        comparison=comparison, preferred=preferred, seconds_to_decide=1.0, channel="api", chosen_at=chosen_at or number
    )


def make_record(number: int, **choice: object) -> NewRecord:
    event = new_event(make_choice(number, **choice), source="test", now=float(number), event_id=f"event-{number}")
    headers, body = encode_event(event)
    return NewRecord(key=event.key.encode(), value=body, headers=headers)


class FakePolicy:
    """A policy whose adapters are bytes."""

    def __init__(self) -> None:
        self.adapters = {"policy": b"", "stable": b""}

    def reset(self) -> None:
        self.adapters["policy"] = b"zero"

    def load(self, path: Path) -> None:
        self.adapters["policy"] = (path / "adapter_model.safetensors").read_bytes()

    def save(self, out_dir: Path) -> None:
        (out_dir / "adapter_model.safetensors").write_bytes(self.adapters["policy"])


def foresee(pair: Pair, logit: float) -> Foreseen:
    return Foreseen(pair.event_id, pair.preferred, logit)


class FakeReward:
    """Counts updates; foresees every held-out choice once it has been updated."""

    def __init__(self) -> None:
        self.version = 0
        self.seen: list[tuple[list[str], list[str]]] = []
        self.record = Prequential()
        self._records: dict[int, Prequential] = {}
        self.taught: list[Pair | Rated] = []
        self.num_measured: list[int] = []
        self.known: set[str] = set()
        self.forgotten: list[str] = []

    def update(self, new, replay, rated=()):
        self.version += 1
        self.known |= {pair.event_id for pair in new}
        self._note(new)
        self.seen.append(([pair.event_id for pair in new], [pair.event_id for pair in replay]))
        self.taught += [*new, *replay, *rated]
        return {"loss": 0.5, "accuracy_prequential": 0.75, "num_foreseen": 16.0}

    def learn_in_bulk(self, chunks, progress, *, total=None):
        self.version += 1
        events = []
        for chunk in chunks:
            events += [pair.event_id for pair in chunk]
            self.taught += chunk
            progress(len(events), {})
        if not events:
            self.version -= 1
            return {}
        self.known |= set(events)
        self._note([])
        self.seen.append((events, []))
        return {"loss": 0.4, "bulk": 1.0}

    def _note(self, new):
        """The record of this version: all that it foresaw, wrongly."""
        self.record = Prequential(400, [*self.record.rows, *(foresee(pair, -1.0) for pair in new)])
        self._records[self.version] = self.record

    def foresee(self, pairs):
        return [foresee(pair, 1.0) for pair in pairs]

    def list_known(self):
        return sorted(self.known)

    def forget(self, event_ids):
        self.forgotten += event_ids
        self.known -= set(event_ids)

    def accuracy(self, pairs):
        self.num_measured.append(len(pairs))
        return (len(pairs) if self.version else 0), len(pairs)

    def save(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "version").write_text(str(self.version))

    def load(self, directory: Path) -> None:
        self.version = int((directory / "version").read_text())
        self.record = self._records.get(self.version, Prequential())


class FakeGateway:
    """Serves the first checkpoint that is registered."""

    def __init__(self) -> None:
        self.known: list[RegisteredCheckpoint] = []
        self.is_down = False
        self.refuses: set[str] = set()
        self.needs: set[str] = set()  # ids it does not give up
        self.rollout: str | None = None
        self.status = "retired"  # of what is registered after the first: its trial is over at once

    def read_state(self) -> ServingState:
        self._answer()
        stable = self.known[0] if self.known else None
        phase = "Progressing" if self.rollout else None
        return ServingState(stable and stable.id, stable and stable.digest, self.rollout, phase)

    def list_checkpoints(self) -> list[RegisteredCheckpoint]:
        self._answer()
        return list(self.known)

    def register(self, path: Path) -> str:
        self._answer()
        manifest = read_manifest(path)
        if manifest.digest in self.refuses:
            raise GatewayRefused("wrong rank")
        status = self.status if self.known else "stable"
        self.known.append(RegisteredCheckpoint(manifest.id, manifest.number, manifest.digest, status))
        return status

    def delete_checkpoint(self, checkpoint: str) -> None:
        self._answer()
        if checkpoint in self.needs:
            raise GatewayRefused("it is on trial")
        self.known = [
            replace(known, status="deleted", may_delete=False) if known.id == checkpoint else known
            for known in self.known
        ]

    def _answer(self) -> None:
        if self.is_down:
            raise GatewayUnavailable("connection refused")
