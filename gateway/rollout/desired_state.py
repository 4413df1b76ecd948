"""What follows from the tables: the view to serve, the checkpoints' statuses, a fresh row, an A/A copy, what may go.

Pure but for `copy_checkpoint`, which writes one directory, and `list_observed`, which reads.
"""

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import msgspec
from sqlalchemy import Connection

from feedback.durable import publish_directory
from feedback.manifest import SIGNATURE, Manifest, write_manifest
from gateway.engines.deployment import ServingView
from gateway.rollout.pure import machine
from gateway.rollout.pure.findings import LATE_PHASES
from gateway.rollout.pure.rules import Rules
from gateway.sections.rollout import Kl, RolloutSection
from gateway.tables.checkpoints import CheckpointRow
from gateway.tables.rollouts import list_tries
from gateway.tables.rows import RolloutRow
from gateway.tables.serving import ServingRow


def read_rules(row: RolloutRow) -> Rules:
    """The settings the rollout was opened with: it is judged by them to its end."""
    section = RolloutSection.model_validate_json(row.settings)
    rules = convert_rules(section)
    return rules if "kl" in section.model_fields_set else msgspec.structs.replace(rules, kl=None)


def convert_rules(section: RolloutSection) -> Rules:
    """What decisions need of the settings."""
    return msgspec.convert(section.model_dump(), Rules)


def build_desired_view(serving: ServingRow, row: RolloutRow | None) -> ServingView:
    """What should serve, by the tables alone."""
    view = ServingView(generation=serving.generation, stable=serving.stable)
    if row is None or row.phase in (machine.PENDING, machine.ABORTING, machine.ROLLING_BACK):
        return view
    salt, observed = bytes.fromhex(row.salt), name_observed(row)
    if row.phase == machine.SHADOWING:
        shadow = read_rules(row).shadow
        return replace(
            view, canary=row.checkpoint, salt=salt, observed=observed, shadow_share=shadow.share,
            max_shadows=shadow.max_in_flight,
        )  # fmt: skip
    if row.phase == machine.BAKING:
        return replace(
            view, canary=row.stable, weight=row.weight, salt=salt, rollout=row.id, observed=observed, is_baking=True
        )
    return replace(
        view, canary=row.checkpoint, weight=row.weight, duel_share=row.duel_share, salt=salt, rollout=row.id,
        observed=observed, kl=_find_kl(row) if observed == row.id else None,
    )  # fmt: skip


def _find_kl(row: RolloutRow) -> Kl | None:
    """How answers are measured; None where none is, or where the rollout is older than that guardrail."""
    section = RolloutSection.model_validate_json(row.settings)
    return section.kl if "kl" in section.model_fields_set and section.kl.share > 0 else None


def name_observed(row: RolloutRow) -> str:
    """Under which name first requests are kept now: the rollout's, with its phase where that is judged for itself."""
    phase = row.resume_phase if row.phase == machine.PAUSED else row.phase
    if phase == machine.PROMOTING:
        phase = machine.WAITING
    return f"{row.id}.{phase}" if phase in (machine.SHADOWING, *LATE_PHASES) else row.id


def list_observed(conn: Connection, row: RolloutRow) -> list[str]:
    """Under which names first requests are kept that say who has been seen now: of a trial, those of its pair."""
    observed = name_observed(row)
    return list_tries(conn, row) if observed == row.id else [observed]


def new_statuses(old: RolloutRow, new: RolloutRow) -> list[tuple[str, str]]:
    """The checkpoints' statuses that change with a transition."""
    if new.phase == machine.BAKING:
        return [(new.checkpoint, "stable"), (new.stable, "baking")]
    if new.phase == machine.HEALTHY:
        return [(new.stable, "draining")]
    if new.phase == machine.ROLLING_BACK:
        return [(new.stable, "baking")]
    if new.phase == machine.ABORTING and old.phase in (machine.BAKING, machine.ROLLING_BACK):
        return [(new.checkpoint, "canary"), (new.stable, "stable")]
    if new.phase == machine.DEGRADED:
        return [(new.checkpoint, "superseded" if old.phase == machine.PENDING else "draining")]
    return []


def new_rollout(
    checkpoint: CheckpointRow, serving: ServingRow, policy: str, settings: RolloutSection, number: int, now: float
) -> RolloutRow:
    """A Pending rollout with a salt of its own, and a pair of its own."""
    assert serving.stable is not None
    name = f"r-{number + 1:06d}"
    return RolloutRow(
        id=name, policy=policy, checkpoint=checkpoint.id, stable=serving.stable,
        aa=checkpoint.kind == "aa", phase=machine.PENDING, analysis="Pending", reason=machine.Reason.CREATED.value, step=0,
        step_started_at=now, weight=0.0, duel_share=settings.duel_share, salt=secrets.token_hex(16),
        generation=serving.generation, created_at=now, started_at=None, phase_started_at=now, finished_at=None,
        resume_phase="", waived="", decision_digest="", settings=settings.model_dump_json(), pair=name, num_tries=1,
    )  # fmt: skip


def find_deletable(
    rows: Sequence[CheckpointRow], stable: CheckpointRow | None, held: frozenset[str], keep: int
) -> frozenset[str]:
    """The checkpoints whose files nobody needs: not stable or its parent, not of the `keep` newest, not on trial.

    held: what any gateway loads, or answers with. keep: 0 keeps all. A checkpoint whose files another serves stays too.
    """
    if keep == 0:
        return frozenset()
    newest = sorted(rows, key=lambda row: row.number)[-keep:]
    needed = {row.id for row in newest} | held
    if stable is not None:
        needed |= {stable.id, stable.parent or ""}
    free = frozenset(row.id for row in rows if row.status in ("retired", "superseded")) - needed
    return free - {row.stored_as for row in rows if row.status != "deleted" and row.id not in free}


def make_aa_manifest(stable: CheckpointRow, number: int) -> Manifest:
    """Stable's own manifest under an A/A id."""
    suffix = sha256(f"{stable.digest} {number} {secrets.token_hex(8)}".encode()).hexdigest()[:12]
    return msgspec.structs.replace(
        stable.parsed, id=f"a-{number:06d}-{suffix}", number=number, parent=stable.id, kind="aa",
        metrics={**stable.parsed.metrics, "aa": 1.0},
    )  # fmt: skip


def copy_checkpoint(stable: CheckpointRow, manifest: Manifest) -> Path:
    """Copy stable's directory under an A/A id beside it; the manifest goes in last, the name at the very end."""
    source = Path(stable.path)
    final, partial = source.parent / manifest.id, source.parent / f".{manifest.id}.partial"
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns(SIGNATURE))
    write_manifest(partial, manifest)
    publish_directory(partial, final)
    return final
