"""Decisions as they are kept: what each came to under a digest, and all that it rested on, so that it can be made again.

Users' names are left out: each is its number in the order of the names, which changes no figure. Pure.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import msgspec

from gateway.rollout.pure.findings import Findings, Inputs, weigh
from gateway.rollout.pure.machine import decide
from gateway.rollout.pure.rules import Rules
from gateway.rollout.pure.transitions import Transition
from gateway.rollout.pure.users import Duel, Voter
from gateway.tables.rows import DecisionRow, Observation, RolloutRow


class _Record(msgspec.Struct, frozen=True):
    """What a decision rested on. code: SHA-256 of the files that decided."""

    row: RolloutRow
    inputs: Inputs
    code: str


@dataclass(frozen=True)
class Replay:
    """A decision made again. digest: of what it comes to now, empty if it cannot be. is_same_code: by the files of then."""

    verdict: str
    digest: str
    is_same_code: bool


def record_decision(
    row: RolloutRow, transition: Transition, findings: Findings, inputs: Inputs, code: str
) -> DecisionRow:
    """The decision that moved the row, to be stored."""
    data = _describe(row, transition.reason.value, findings, inputs, code)
    packed = zlib.compress(msgspec.msgpack.encode(_Record(row, _leave_out_names(inputs), code)))
    return DecisionRow(transition.reason.value, hashlib.sha256(data.encode()).hexdigest(), data, packed)


def replay_decision(decision: DecisionRow, read_rules: Callable[[RolloutRow], Rules], code: str) -> Replay:
    """Make a stored decision again from what it rested on; one that was stored otherwise cannot be. code: of the files now."""
    if decision.inputs is None:
        return Replay("", "", is_same_code=False)
    try:
        record = msgspec.msgpack.decode(zlib.decompress(decision.inputs), type=_Record)
        rules = read_rules(record.row)
    except (zlib.error, ValueError):  # of a release with other columns or settings, or damaged
        return Replay("", "", is_same_code=False)
    findings = weigh(rules, record.inputs)
    transition = decide(record.row, findings, record.inputs.now, rules)
    verdict = "" if transition is None else transition.reason.value
    data = _describe(record.row, verdict, findings, record.inputs, record.code)
    return Replay(verdict, hashlib.sha256(data.encode()).hexdigest(), record.code == code)


def _describe(row: RolloutRow, verdict: str, findings: Findings, inputs: Inputs, code: str) -> str:
    """Everything a decision rests on, as JSON."""
    data = {
        "rollout": row.id,
        "checkpoint": row.checkpoint,
        "stable": row.stable,
        "verdict": verdict,
        "evidence": asdict(findings.evidence),
        "guardrails": asdict(findings.guardrails),
        "late": None if findings.late is None else asdict(findings.late),
        "fragility": findings.fragility,
        "last_choice_at": inputs.last_choice_at,
        "settings": hashlib.sha256(row.settings.encode()).hexdigest(),
        "code": code,
    }
    for name in ("slices", "tripwires", "drift"):
        if found := getattr(findings, name):  # decisions of releases that had none keep their digest
            data[name] = msgspec.to_builtins(found)
    return json.dumps(data, sort_keys=True)


def _leave_out_details(duel: Duel, user: str) -> Duel:
    """A voter's first duel without what decisions read elsewhere."""
    return msgspec.structs.replace(duel, user=user, tags=(), differences=())


def _leave_out_names(inputs: Inputs) -> Inputs:
    names = {voter.user for voter in (*inputs.voters, *(inputs.late_voters or ()))}
    names |= {one.user for one in (*inputs.observed, *inputs.late_observed)}
    numbers = {name: f"{number:08d}" for number, name in enumerate(sorted(names))}

    def rename_voters(voters: Sequence[Voter]) -> list[Voter]:
        return [
            msgspec.structs.replace(
                voter, user=numbers[voter.user],
                first=None if voter.first is None else _leave_out_details(voter.first, numbers[voter.user]),
            )
            for voter in voters
        ]  # fmt: skip

    def rename_observed(observed: Sequence[Observation]) -> list[Observation]:
        return [replace(one, user=numbers[one.user]) for one in observed]

    return replace(
        inputs,
        voters=rename_voters(inputs.voters),
        observed=rename_observed(inputs.observed),
        late_voters=None if inputs.late_voters is None else rename_voters(inputs.late_voters),
        late_observed=rename_observed(inputs.late_observed),
    )
