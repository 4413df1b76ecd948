"""Reads what a finished run left: the tables of gateway and trainer, the reward model's state, the manifests."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from bench.chaos.checker import Checkpoint, Consumed, Evidence, Stored
from bench.chaos.clients import History
from feedback.choices import choices
from feedback.database import open_database
from feedback.inbox import dead_letters, preferences
from feedback.manifest import Manifest, read_manifest
from trainer.run.publish.checkpoints import list_names
from trainer.run.reward.keeper import list_states, updates
from trainer.run.rounds import list_finished


def gather(history: History, gateway_database: str, trainer_database: str, state_dir: Path) -> Evidence:
    """All that the checker judges by. The processes must have stopped."""
    gateway = open_database(gateway_database)
    with gateway.connect() as connection:
        rows = connection.execute(sa.select(choices.c.comparison_id, choices.c.preferred))
        stored = [Stored(row.comparison_id, row.preferred) for row in rows]
    gateway.dispose()
    trainer = open_database(trainer_database)
    columns = preferences.c
    wanted = (columns.id, columns.event_id, columns.comparison_id, columns.preferred, columns.split)
    with trainer.connect() as connection:
        consumed = [Consumed(*row) for row in connection.execute(sa.select(*wanted, columns.used_as_new))]
        buried = [key.decode(errors="replace") for key in connection.execute(sa.select(dead_letters.c.key)).scalars()]
        marked = list(connection.execute(sa.select(updates.c.version)).scalars())
    trainer.dispose()
    return Evidence(
        sent=history.sent,
        acknowledged=history.acknowledged,
        violations=history.violations,
        stored=stored,
        consumed=consumed,
        dead_letters=buried,
        updates=marked,
        reward_version=find_reward_version(state_dir / "reward"),
        checkpoints=read_checkpoints(state_dir / "checkpoints"),
    )


def find_reward_version(folder: Path) -> int:
    """The newest saved version; 0 if there is none."""
    states = [state for base in folder.glob("*") for state in list_states(base)]
    return max((int(state.name.removeprefix("v-")) for state in states), default=0)


def read_checkpoints(folder: Path) -> list[Checkpoint]:
    """What each checkpoint of the trainer's own says it learnt from; copies for A/A trials learnt nothing."""
    manifests = {manifest.id: manifest for manifest in (read_manifest(path) for _, path in list_names(folder))}
    return [
        Checkpoint(
            id=manifest.id,
            parent=manifest.parent,
            after_id=read_last_id(manifests.get(manifest.parent or "")),
            last_id=read_last_id(manifest),
            num_preferences=manifest.num_preferences,
            ids_digest=str(manifest.settings["preference_ids_digest"]),
        )
        for manifest in manifests.values()
    ]


def read_last_id(manifest: Manifest | None) -> int:
    return int(manifest.settings.get("last_preference_id", 0)) if manifest else 0


def count_outcomes(trainer_database: str) -> dict[str, int]:
    """Finished rounds by outcome."""
    database = open_database(trainer_database)
    with database.connect() as connection:
        rows = list_finished(connection, limit=10_000)
    database.dispose()
    outcomes = [row["outcome"] for row in rows]
    return {outcome: outcomes.count(outcome) for outcome in ("published", "stopped")}
