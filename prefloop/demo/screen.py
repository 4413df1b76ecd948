"""The demo's screen: one dashboard drawn from status bodies, or plain lines where nobody watches a terminal.

`render` is pure: the status goes in, something rich can print comes out. Everything may be missing from a status, for
processes come up one after the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from prefloop.rounds import BUSY

BAR_WIDTH = 30
LINE_PERIOD_S = 10.0
Status = Mapping[str, Any]


def draw_bar(share: float, width: int = BAR_WIDTH) -> str:
    """Return a bar that is filled by `share`, which is cut to 0..1."""
    filled = round(max(0.0, min(1.0, share)) * width)
    return "█" * filled + "░" * (width - filled)


def measure_evidence(e_value: float | None, threshold: float | None) -> float:
    """Return how far the evidence has come, 0 to 1, on a log scale: e = 1 says nothing, e = threshold decides."""
    if not e_value or not threshold or e_value <= 1.0 or threshold <= 1.0:
        return 0.0
    return min(1.0, math.log(e_value) / math.log(threshold))


def format_share(share: float | None) -> str:
    """Whole per cent; a dash for none."""
    return "–" if share is None else f"{share:.0%}"


def format_seconds(seconds: float) -> str:
    """Such as 42s or 3m05s; parts of a second count as one."""
    whole = max(0, math.ceil(seconds))
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60:02d}s"


def get_section(status: Status, *names: str) -> Mapping[str, Any]:
    """Return a nested section, empty where it, or anything above it, is missing or null."""
    section: Any = status
    for name in names:
        section = section.get(name) or {}
    return section  # type: ignore[no-any-return]


def describe_round(trainer: Status) -> str:
    """Say what the trainer does, or why it does not train."""
    if not trainer:
        return "not up yet"
    training = get_section(trainer, "round")
    state, reason = training.get("state", "idle"), training.get("reason") or ""
    if state in BUSY:
        progress = training.get("progress") or 0.0
        return f"round {training.get('number', '?')} {state} {draw_bar(progress, 20)} {progress:.0%} {reason}".rstrip()
    new, every = trainer.get("new_since_round", 0), trainer.get("round_every") or 0
    waited = f"{draw_bar(new / every, 20)} {new}/{every} preferences to the next round" if every else f"{new} new"
    return f"{waited}  {reason}".rstrip()


def describe_last_round(trainer: Status) -> str:
    """How many rounds ended, how many of them without a checkpoint, and what came of the last."""
    rounds = trainer.get("rounds") or []
    if not rounds:
        return "none yet"
    last = max(rounds, key=lambda row: row["number"])
    kind = f" ({last['kind'].upper()})" if last.get("kind") else ""
    why = (last.get("reason") or "?").split(";")[0]  # the first thing that is wrong; the round's report has all
    what = last.get("checkpoint") if last.get("outcome") == "published" else f"stopped: {why}"
    stopped = sum(row.get("outcome") == "stopped" for row in rounds)
    return f"{len(rounds)} ({stopped} stopped); round {last['number']}{kind} {what}"


def summarise_rounds(trainer: Status) -> str:
    """The rounds that ended, and how far the one under way or the way to the next one is."""
    training = get_section(trainer, "round")
    new, every = trainer.get("new_since_round", 0), trainer.get("round_every") or 0
    if training.get("state") in BUSY:
        far = f"{training.get('progress') or 0.0:.0%}"
        if training["state"] == "preparing" and training.get("reason"):  # its parts have no share that is done
            far = f"({training['reason']})"
        now = f"; round {training.get('number', '?')} {training['state']} {far}"
    elif training.get("state") == "learning":
        now = f"; the reward model catches up {training.get('progress') or 0.0:.0%}"
    else:
        now = f"; {new}/{every} preferences to the next" if every else ""
    return describe_last_round(trainer) + now


def describe_rollout(gateway: Status, now: float) -> list[str]:
    """Say what is on trial, how far its evidence is, and what happens next."""
    rollout = get_section(gateway, "rollout")
    if not rollout:
        return ["none"]
    step = f"step {(rollout.get('step') or 0) + 1}/{rollout.get('num_steps') or '?'}"
    kind = " (A/A)" if rollout.get("aa") else ""
    reason = f" ({rollout['reason']})" if rollout.get("reason") else ""
    lines = [
        f"{rollout.get('checkpoint')}{kind}: {rollout.get('phase')}{reason}, {step}",
        f"weight   {draw_bar(rollout.get('weight') or 0.0)} {format_share(rollout.get('weight') or 0.0)}",
    ]
    evidence = get_section(rollout, "evidence")
    if evidence:
        e_value, threshold = evidence.get("e"), evidence.get("threshold")
        bar = draw_bar(measure_evidence(e_value, threshold))
        lines.append(f"evidence {bar} e {e_value or 0:.3g} of {threshold or 0:.3g}, {evidence.get('users', 0)} users")
    if rollout.get("approve_at"):
        left = format_seconds(rollout["approve_at"] - now)
        lines.append(f"WAITING FOR APPROVAL: approves itself in {left} (or approve / abort in the console)")
    elif rollout.get("phase") == "WaitingPromotion":
        lines.append("WAITING FOR APPROVAL: approve or abort in the console")
    elif rollout.get("next_move_at") and rollout["next_move_at"] > now:
        lines.append(f"next move in {format_seconds(rollout['next_move_at'] - now)}")
    if rollout.get("verdict_sentence"):
        lines.append(rollout["verdict_sentence"])
    return lines


def describe_process(process: Status) -> str:
    """Say one process's state, and why it was started again if it was."""
    line = f"{process.get('name', '?')}: {process.get('state', '?')}"
    restarts = process.get("restarts") or 0
    if restarts:
        line += f", restarted {restarts}x"
    return f"{line} ({process['reason']})" if process.get("reason") else line


def describe_world(status: Status) -> str:
    """Which world this is, what its people like, how rounds learn from them, and whether they mean what they choose."""
    shuffled = ", choices shuffled: nothing can be learnt" if status.get("is_shuffled") else ""
    rounds = f", rounds by {status['algorithm'].upper()}" if status.get("algorithm") else ""
    return f"{status['world']}, taste {status.get('taste', '?')}{rounds}{shuffled}"


def list_rows(status: Status) -> list[tuple[str, str]]:
    """Return the dashboard's rows: a label and a text."""
    now = status.get("now") or time.time()
    people, gateway, trainer = (get_section(status, name) for name in ("people", "gateway", "trainer"))
    counters = people or get_section(gateway, "counters")
    reward = get_section(trainer, "reward")
    requests = f"{counters.get('requests', 0)} ({counters.get('failed_requests', 0)} failed)"
    chosen = f"{counters.get('acks', counters.get('choices', 0))} of {counters.get('comparisons', 0)} comparisons"
    accuracy = f"{format_share(reward.get('prequential_accuracy'))} of the last {reward.get('num_foreseen', 0)} choices foreseen"
    styles = sorted(get_section(people, "recent_styles").items(), key=lambda item: -item[1])
    rows = [
        ("time", format_seconds(status.get("elapsed_s") or 0.0)),
        *([("world", describe_world(status))] if status.get("world") else []),
        ("requests", requests),
        ("choices", chosen),
        ("answers", ", ".join(f"{style} {share:.0%}" for style, share in styles) or "–"),
        ("reward model", accuracy),
        ("training", describe_round(trainer)),
        ("rounds", describe_last_round(trainer)),
        ("stable", str(get_section(gateway, "stable").get("id", "–"))),
        ("canary", "\n".join(describe_rollout(gateway, now))),
        ("promotions", str(status.get("promotions", 0))),
        ("processes", "\n".join(describe_process(process) for process in status.get("processes") or []) or "–"),
    ]
    rows += [(name, str(url)) for name, url in get_section(status, "addresses").items()]
    return [*rows, ("note", str(status["note"]))] if status.get("note") else rows


def render(status: Status) -> RenderableType:
    """Draw the dashboard of one status.

    Reads now, elapsed_s, preset, world, taste, note, promotions, addresses {name: url}, processes [{name, state, restarts, reason}],
    gateway and trainer (their status bodies), people (their stats file), final (the examination's result).
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan", justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in list_rows(status):
        table.add_row(label, Text(text))
    preset = f" – settings preset for short worlds: {status['preset']}" if status.get("preset") else ""
    board = Panel(table, title=f"prefloop demo{preset}", border_style="blue")
    final = get_section(status, "final")
    return Group(board, render_final(final)) if final else board


def describe_share(share: Mapping[str, Any]) -> str:
    """Such as 61.2% [55.0%, 67.0%] of 240."""
    return f"{share['value']:.1%} [{share['low']:.1%}, {share['high']:.1%}] of {share['n']}"


def describe_faults(shares: Mapping[str, float]) -> str:
    """Such as 12.5% (unfinished 12.5%); faults that none has are left out."""
    named = [f"{name.replace('_', ' ')} {share:.1%}" for name, share in shares.items() if share and name != "any"]
    return f"{shares['any']:.1%}" + (f" ({', '.join(named)})" if named else "")


def render_final(final: Mapping[str, Any]) -> RenderableType:
    """Draw what people got before and after: win rates with intervals, and the examples side by side."""
    table = Table(title="Before and after, on questions that nobody asked", show_lines=True, expand=True)
    table.add_column("", style="bold", ratio=2)
    table.add_column(f"before: {final['seed_policy']}", ratio=3)
    table.add_column(f"after: {final['policy']}", ratio=3)
    before, after = describe_share(final["win_rate_before"]), describe_share(final["win_rate_after"])
    table.add_row("wins against the seed policy", Text(before), Text(after))
    if final["wrong_rate_before"] is not None:
        table.add_row("wrong answers", f"{final['wrong_rate_before']:.1%}", f"{final['wrong_rate_after']:.1%}")
    table.add_row("degenerate answers", *(describe_faults(final[f"degenerate_{when}"]) for when in ("before", "after")))
    for example in final["examples"]:
        old, new = (f"{example[when]}\n({example[f'{when}_style']})" for when in ("before", "after"))
        table.add_row(Text(example["question"]), Text(old), Text(new))
    return table


def format_line(status: Status) -> str:
    """Return the status as one plain line, for logs and pipes."""
    trainer, gateway = get_section(status, "trainer"), get_section(status, "gateway")
    people = get_section(status, "people") or get_section(gateway, "counters")
    rollout = "; ".join(describe_rollout(gateway, status.get("now") or time.time())[:1])
    evidence = get_section(gateway, "rollout", "evidence").get("e")
    parts = [
        f"[{format_seconds(status.get('elapsed_s') or 0.0)}]",
        f"requests {people.get('requests', 0)} failed {people.get('failed_requests', 0)}",
        f"choices {people.get('acks', people.get('choices', 0))}",
        f"reward {format_share(get_section(trainer, 'reward').get('prequential_accuracy'))}",
        f"rounds {summarise_rounds(trainer)}",
        f"canary {rollout}" + ("" if evidence is None else f", e {evidence:.3g}"),
        f"promotions {status.get('promotions', 0)}",
    ]
    troubled = [describe_process(process) for process in status.get("processes") or [] if process.get("reason")]
    return " | ".join([*parts, *troubled, *([str(status["note"])] if status.get("note") else [])])


class Screen:
    """Shows statuses: a live dashboard on a terminal, a line every ten seconds elsewhere. Use as a context manager."""

    def __init__(self, console: Console, line_period_s: float = LINE_PERIOD_S) -> None:
        self.console = console
        self.line_period_s = line_period_s
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._line_at = -math.inf

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, status: Status) -> None:
        """Show a status; call as often as you like."""
        if self._live:
            self._live.update(render(status), refresh=True)
        elif time.monotonic() - self._line_at >= self.line_period_s:
            self._line_at = time.monotonic()
            self.print_line(format_line(status))

    def print_line(self, line: str) -> None:
        """Print a line of its own, above the dashboard where there is one."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show_final(self, final: Mapping[str, Any]) -> None:
        """Print the before-and-after table."""
        self.console.print(render_final(final))
