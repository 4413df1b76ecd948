"""Draws the state machine of rollouts into docs/rollouts.md from its table: run `make docs` after changing it.

A test compares them.
"""

from collections import defaultdict
from pathlib import Path

from gateway.rollout.pure.transitions import (
    OPERATOR_EVENTS,
    PENDING,
    PROGRESSING,
    RESUME_TO,
    TRANSITIONS,
    WAITING,
    Event,
)

PAGE = Path(__file__).with_name("rollouts.md")
BEGIN, END = "<!-- drawn by render_rollouts.py -->", "<!-- end of the drawing -->"


def draw_diagram() -> str:
    """The table as a Mermaid state diagram; what operators do is in capitals."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {PENDING}"]
    for phase, events in TRANSITIONS.items():
        by_target: dict[str, list[Event]] = defaultdict(list)
        for event, after in events.items():
            for target in (PROGRESSING, WAITING) if after == RESUME_TO else (after,):
                by_target[target].append(event)
        for target, found in by_target.items():
            label = " / ".join(event.upper() if event in OPERATOR_EVENTS else str(event) for event in found)
            lines.append(f"    {phase} --> {target}: {label}")
    return "\n".join([*lines, "```"])


def draw_table() -> str:
    """The table row by row: every phase's events, who makes them, and where they lead."""
    rows = ["| phase | event | who | leads to |", "|---|---|---|---|"]
    for phase, events in TRANSITIONS.items():
        for event, after in events.items():
            who = "operator" if event in OPERATOR_EVENTS else "controller"
            rows.append(f"| {phase} | {event} | {who} | {after} |")
    return "\n".join(rows)


def render_page(page: str) -> str:
    """The page with the drawing of now. Raises ValueError if the marks are missing."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"{PAGE.name} has no place for the drawing")
    return f"{before}{BEGIN}\n\n{draw_diagram()}\n\n{draw_table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text()))
