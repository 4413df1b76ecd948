"""How a rollout looks in a terminal: lines and tables that stay whole at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from prefloop.rollouts.records import AuditEvent, Evidence, Guardrail, Replay, Rollout
from prefloop.terminal import format_evidence, format_time, make_table


def tabulate_rollouts(rows: Iterable[Rollout]) -> Table:
    """One rollout a row; when it started stands below its checkpoint, why it is where it is below the phase."""
    table = make_table(
        "rollout", "checkpoint", "phase", "weight", "users", "evidence", whole=("rollout", "checkpoint", "phase")
    )
    for row in rows:
        table.add_row(
            row.id,
            Text(f"{row.checkpoint}\n{format_time(row.created_at)}"),
            Text("\n".join(filter(None, (row.phase, row.reason, row.note)))),
            f"{row.weight:.0%}",
            f"{row.evidence.users:,}",
            format_evidence(row.evidence.e, row.evidence.threshold),
        )
    return table


def render_rollout(row: Rollout) -> Group:
    """All of a rollout: what serves, verdict, evidence, guardrails, audit trail."""
    parts: list[RenderableType] = [
        Text(f"{row.id}  {row.checkpoint}"),
        Text(f"{'against':>{len(row.id)}}  {row.stable}"),
        Text(describe_phase(row)),
        Text(row.verdict_sentence),
    ]
    if row.actions:
        parts.append(Text(f"may be done now: {', '.join(row.actions)}"))
    parts += [Text(line) for line in describe_evidence(row.evidence)]
    return Group(*parts, Text(), tabulate_guardrails(row.guardrails), Text(), tabulate_events(row.events))


def render_decision(row: Rollout) -> Group:
    """What an approval rests on: verdict, evidence, guardrails that have not passed, digest."""
    parts: list[RenderableType] = [
        Text(f"{row.id}  {row.checkpoint} instead of {row.stable}"),
        Text(row.verdict_sentence),
        *(Text(line) for line in describe_evidence(row.evidence)),
    ]
    lacking = [each for each in row.guardrails if each.status != "pass"]
    parts += [Text("guardrails that have not passed:"), tabulate_guardrails(lacking)] if lacking else [
        Text("every guardrail passes")
    ]  # fmt: skip
    return Group(*parts, Text(f"generation {row.generation}, decision digest"), Text(row.decision_digest or "none yet"))


def describe_phase(row: Rollout) -> str:
    """`Progressing (NoData)  canary weight 25%  step 2 of 4  next move at …`."""
    reason = f" ({row.reason})" if row.reason else ""
    parts = [
        f"{row.phase}{reason}",
        f"{row.weight_of} weight {row.weight:.0%}",
        f"step {row.step + 1} of {row.num_steps}",
    ]
    if row.approve_at is not None:
        parts.append(f"approved by itself at {format_time(row.approve_at)}")
    elif row.next_move_at is not None:
        parts.append(f"next move at {format_time(row.next_move_at)}")
    return "  ".join(parts)


def describe_evidence(evidence: Evidence) -> list[str]:
    """The evidence in one line, and how fragile it is in another."""
    lines = [
        f"evidence {format_evidence(evidence.e, evidence.threshold)}, {evidence.users:,} {evidence.unit}s, "
        f"net wins {evidence.net_win_rate:+.2f} [{evidence.ci_low:+.2f}, {evidence.ci_high:+.2f}]"
    ]
    if evidence.fragility:
        lines.append(
            f"fragility: without the {evidence.fragility} {evidence.unit}s that like it most the evidence is short"
        )
    return lines


def describe_change(row: Rollout) -> str:
    """One line that says where a rollout stands, for a log."""
    return f"{describe_phase(row)}  {row.verdict_sentence}"


def tabulate_guardrails(guardrails: Iterable[Guardrail]) -> Table:
    """One guardrail a row."""
    table = make_table("guardrail", "status", "seen", "missing", "alarm", whole=("status", "seen", "missing"))
    for each in guardrails:
        action = "accepted" if each.waived else each.action.replace("_", " ")
        table.add_row(
            each.name, each.status, f"{each.seen:,}", f"{each.missing or '':,}" if each.missing else "", action
        )
    return table


def tabulate_events(events: Iterable[AuditEvent]) -> Table:
    """The audit trail, oldest first: into which phase, by whom, and why with the note below."""
    table = make_table("at", "phase", "who", "why", whole=("at", "phase", "who"))
    for event in events:
        why = "\n".join(filter(None, (event.reason, event.note)))
        table.add_row(format_time(event.at), event.to_phase, Text(event.actor), Text(why))
    return table


def print_replay(console: Console, found: Replay) -> None:
    """One decision a line."""
    for one in found.decisions:
        outcome = "same" if one.is_same else "cannot be made again" if not one.replayed else "OTHERWISE"
        code = "" if one.is_same_code else "  (decided by other code)"
        console.print(f"{format_time(one.at)}  {one.verdict:<20} {one.digest[:12]}  {outcome}{code}", soft_wrap=True)
    if not found.decisions:
        console.print("No decision was made.")
