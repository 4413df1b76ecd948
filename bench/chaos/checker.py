"""Whether every promise held, judged by what the clients themselves sent and heard. Pure: evidence in, findings out.

The tables are read only for what became of a choice that a client knows of; where a table and a client disagree, the
client is right. A choice that was sent and never acknowledged may be stored or not, but not twice and not otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.run.publish.checkpoints import digest_ids
from trainer.text.pairs import DECISIVE, explain_use


@dataclass(frozen=True)
class Stored:
    """A choice as the gateway's database has it."""

    comparison: str
    preferred: str


@dataclass(frozen=True)
class Consumed:
    """A choice as the trainer's database has it; ids rise in order of arrival."""

    id: int
    event_id: str
    comparison: str
    preferred: str
    split: str
    used_as_new: int


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's manifest says it learnt from: preferences with after_id < id <= last_id, newest first kept."""

    id: str
    parent: str | None
    after_id: int
    last_id: int
    num_preferences: int
    ids_digest: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """sent, acknowledged: comparison -> preferred, as the clients noted; violations: answers no client may ever get.

    updates: versions of the reward model whose preferences are marked as used; reward_version: that of its saved state.
    """

    sent: Mapping[str, str]
    acknowledged: Mapping[str, str]
    violations: Sequence[str] = ()
    stored: Sequence[Stored] = ()
    consumed: Sequence[Consumed] = ()
    dead_letters: Sequence[str] = ()  # keys: comparisons
    updates: Sequence[int] = ()
    reward_version: int = 0
    checkpoints: Sequence[Checkpoint] = ()


@dataclass
class Findings:
    """The figures, and a sentence for each promise that broke (at most a few of one kind)."""

    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0
    trained: int = 0
    trained_twice: int = 0
    unaccounted: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


def check(evidence: Evidence) -> Findings:
    """Judge a run that has ended, with everything up and drained."""
    findings = Findings(acknowledged=len(evidence.acknowledged))
    findings.broken += [f"answer: {violation}" for violation in evidence.violations]
    lost = find_lost(evidence)
    doubled = find_doubled(evidence)
    twice = find_trained_twice(evidence)
    findings.lost, findings.duplicated, findings.trained_twice = len(lost), len(doubled), len(twice)
    for kind, found in (("lost", lost), ("duplicated", doubled), ("trained twice", twice)):
        findings.broken += [f"{kind}: {what}" for what in sorted(found)[:5]]
    account(evidence, findings)
    return findings


def find_lost(evidence: Evidence) -> set[str]:
    """Acknowledged choices that the gateway's database, or the trainer's, lacks or has otherwise."""
    stored = {(row.comparison, row.preferred) for row in evidence.stored}
    arrived = {(row.comparison, row.preferred) for row in evidence.consumed}
    arrived |= {(key, evidence.acknowledged.get(key, "")) for key in evidence.dead_letters}
    return {choice[0] for choice in evidence.acknowledged.items() if choice not in stored or choice not in arrived}


def find_doubled(evidence: Evidence) -> set[str]:
    """Comparisons with two rows in one database, and rows that say what no client sent."""
    doubled: set[str] = set()
    for rows in (evidence.stored, evidence.consumed):
        counts = Counter(row.comparison for row in rows)
        doubled |= {comparison for comparison, num in counts.items() if num > 1}
        doubled |= {row.comparison for row in rows if evidence.sent.get(row.comparison) != row.preferred}
    return doubled


def find_trained_twice(evidence: Evidence) -> set[str]:
    """Events that an update took as new twice, or that are new twice in the lineage of one checkpoint.

    An update that was saved but never marked has taught the model what a later one will take as new again.
    """
    twice = {row.event_id for row in evidence.consumed if row.used_as_new > 1}
    missing = set(range(1, evidence.reward_version + 1)) ^ set(evidence.updates)
    twice |= {f"reward model {version} was not marked, or not saved" for version in missing}
    known = {checkpoint.id: checkpoint for checkpoint in evidence.checkpoints}
    for checkpoint in evidence.checkpoints:
        seen: Counter[str] = Counter()
        current: Checkpoint | None = checkpoint
        while current is not None:
            events = learnt_by(current, evidence.consumed)
            if events is None:
                twice.add(f"{current.id} did not learn from what its manifest says")
                break
            seen.update(events)
            current = known.get(current.parent or "")
        twice |= {event for event, num in seen.items() if num > 1}
    return twice


def learnt_by(checkpoint: Checkpoint, consumed: Sequence[Consumed]) -> list[str] | None:
    """The events that a checkpoint learnt from; None if its digest is not theirs.

    Holds for rounds without replay, which is how a chaos run trains.
    """
    rows = sorted(
        (row for row in consumed if checkpoint.after_id < row.id <= checkpoint.last_id), key=lambda row: row.id
    )
    events = [row.event_id for row in rows if row.split == "train" and row.preferred in (*DECISIVE, "tie")]
    newest = events[len(events) - checkpoint.num_preferences :] if checkpoint.num_preferences <= len(events) else []
    return newest if digest_ids(newest) == checkpoint.ids_digest else None


def account(evidence: Evidence, findings: Findings) -> None:
    """Say of every acknowledged choice what became of it: trained on, set aside with a reason, or unaccounted for."""
    uses = {row.comparison: explain_use(row.preferred, row.split, row.used_as_new) for row in evidence.consumed}
    buried = set(evidence.dead_letters)
    reasons: Counter[str] = Counter()
    for comparison in evidence.acknowledged:
        reasons["dead_letter" if comparison in buried else uses.get(comparison, "missing")] += 1
    findings.trained = reasons.pop("trained", 0)
    findings.unaccounted = reasons.pop("waiting", 0) + reasons.pop("missing", 0)
    findings.set_aside = dict(sorted(reasons.items()))
    if findings.unaccounted:
        findings.broken.append(f"unaccounted: {findings.unaccounted} acknowledged choices")
