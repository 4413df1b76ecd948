"""What this gateway has done to rollouts since it started: each transition that committed is logged and counted here.

Every transition by the controller or an operator passes `record`. Opening a rollout is none: no row moved.
"""

import logging
from collections import Counter

from gateway.rollout.pure.findings import REASON_OF
from gateway.rollout.pure.machine import SPLIT
from gateway.rollout.pure.transitions import (
    OPERATOR_EVENTS,
    PROGRESSING,
    RESUME_TO,
    TRANSITIONS,
    WAITING,
    Event,
    Reason,
    Transition,
)
from gateway.tables.rows import RolloutRow

_log = logging.getLogger(__name__)
CONTROLLER, OPERATOR = "controller", "operator"
GATE_OF = {reason: name for name, reason in REASON_OF.items()} | {
    Reason.INFERIOR: "inferiority", Reason.SAMPLE_RATIO_MISMATCH: SPLIT,
}  # fmt: skip
_BY_A_GATE = (Event.BREACHED, Event.ALARMED, Event.SKEWED)


class MoveCounts:
    """by_move: transitions by (from, to, actor); by_gate: canaries that a gate has stopped or paused, by the gate.

    Both begin with every key at 0: what is counted for the first time shows as an increase.
    """

    def __init__(self) -> None:
        self.by_move = Counter(dict.fromkeys(_list_moves(), 0))
        self.by_gate = Counter(dict.fromkeys(GATE_OF.values(), 0))

    def record(self, old: RolloutRow, new: RolloutRow, to: Transition) -> None:
        """Log and count what has committed."""
        note = f": {to.note}" if to.note else ""
        _log.info("rollout %s: %s -> %s (%s, %s%s)", new.id, old.phase, new.phase, to.reason, to.actor, note)
        self.by_move[old.phase, new.phase, CONTROLLER if to.actor == CONTROLLER else OPERATOR] += 1
        if to.event in _BY_A_GATE:
            self.by_gate[GATE_OF.get(to.reason, to.reason.value)] += 1


def _list_moves() -> list[tuple[str, str, str]]:
    """What the table of transitions allows. A retry opens a rollout of its own."""
    return [
        (phase, after, OPERATOR if event in OPERATOR_EVENTS else CONTROLLER)
        for phase, events in TRANSITIONS.items()
        for event, to in events.items()
        for after in ((PROGRESSING, WAITING) if to == RESUME_TO else (to,))
        if event != Event.RETRY
    ]
