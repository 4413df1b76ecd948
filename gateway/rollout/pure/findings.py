"""What is known of a rollout at one moment, and what it comes to: evidence and guardrails of its trial, and of its late stage.

The late stage is the phase after the verdict in which the canary still serves: while an approval is awaited, or while it bakes.
Its users are judged afresh, so that a canary which turns bad only then is seen. Pure, and a function of `Inputs` alone: who keeps
those can weigh again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gateway.rollout.pure.divergence import KL, DivergenceTally, Drift, judge_divergence
from gateway.rollout.pure.evidence import Evidence, Point, count_users_to_lose, draw_series, weigh_voters
from gateway.rollout.pure.guardrails import FAIL, Guardrails, judge_guardrails
from gateway.rollout.pure.positions import Positions
from gateway.rollout.pure.rates import log_mean
from gateway.rollout.pure.rules import Rules
from gateway.rollout.pure.slices import Slice, SliceTally, judge_slices
from gateway.rollout.pure.transitions import BAKING, WAITING, Reason
from gateway.rollout.pure.tripwires import TRIPPED, TraitTally, Tripwire, judge_tripwires
from gateway.rollout.pure.users import Voter
from gateway.tables.rows import Observation

LATE_CAP = 1
LATE_WINDOW_S = 60.0
LATE_PHASES = (WAITING, BAKING)
# Each e-value counts by its weight; what is set to roll back and has none here, by the last one.
ROLLBACK_WEIGHTS = {Reason.INFERIOR: 0.4, Reason.HARM: 0.3, Reason.ERRORS: 0.2, Reason.LATENCY: 0.1}
OTHER_WEIGHT = 0.1
REASON_OF = {
    "harm": Reason.HARM, "errors": Reason.ERRORS, "latency": Reason.LATENCY, "token_latency": Reason.TOKEN_LATENCY,
    "refusals": Reason.REFUSALS, "truncation": Reason.TRUNCATION, "length": Reason.LENGTH,
    KL: Reason.KL,
}  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """Voters and first requests (oldest first) of the trial, and of the late stage; None before there is one. now: epoch seconds.

    num_tries: rollouts of this pair under these settings, this one included; each may take its number of users. sees_harm:
    whether anybody has ever reported harm here. slices, positions: what the trial's duels come to by what apps said of them, and by
    the canary's place; traits: how both answers differ; divergences: how far the canary's are from stable's. reward_gain: what the
    reward model foresaw of the canary, None if it was not asked.
    """

    now: float
    voters: Sequence[Voter]
    observed: Sequence[Observation]
    late_voters: Sequence[Voter] | None = None
    late_observed: Sequence[Observation] = ()
    num_tries: int = 1
    sees_harm: bool = False
    slices: Sequence[SliceTally] = ()
    positions: Positions = field(default_factory=Positions)
    traits: Sequence[TraitTally] = ()
    reward_gain: float | None = None
    divergences: DivergenceTally = field(default_factory=DivergenceTally)

    @property
    def last_choice_at(self) -> float:
        """When the newest choice was made, 0 if there is none."""
        return max((voter.last_chosen_at for voter in (*self.voters, *(self.late_voters or ()))), default=0.0)


@dataclass(frozen=True)
class Late:
    """Evidence and guardrails of the late stage alone."""

    evidence: Evidence
    guardrails: Guardrails


@dataclass(frozen=True)
class Findings:
    """What the inputs come to. fragility: users who would have to vanish until the evidence falls below its line, worst first.

    drift: the figures of the guardrail "kl", None where it is not judged.
    """

    evidence: Evidence
    guardrails: Guardrails
    late: Late | None
    fragility: int
    slices: tuple[Slice, ...]
    positions: Positions
    tripwires: tuple[Tripwire, ...]
    drift: Drift | None = None

    @property
    def tripped(self) -> list[Tripwire]:
        """Tripwires that nobody has accepted: each forbids a promotion."""
        return [one for one in self.tripwires if one.status == TRIPPED]

    @property
    def losing_slices(self) -> list[Slice]:
        """Those whose users prefer stable and that nobody has accepted: each forbids a promotion."""
        return [one for one in self.slices if one.status == FAIL]

    def list_blocking(self, *, accepts_too_little: bool = False) -> list[str]:
        """All that forbids a promotion, by name, guardrails first; accepts_too_little: without guardrails that saw too little."""
        guardrails = self.guardrails.list_blocking(accepts_too_little=accepts_too_little)
        return [
            *guardrails,
            *(one.label for one in self.losing_slices),
            *(f"tripwire {one.name}" for one in self.tripped),
        ]

    @property
    def has_data(self) -> bool:
        """Whether anybody asked or chose anything."""
        return self.evidence.votes > 0 or self.guardrails.users > 0

    def log_alarm(self, name: str) -> float:
        """log E of a guardrail's alarm; once there is a late stage, of the mean of both."""
        logs = [self.guardrails.log_alarm(name)]
        if self.late is not None:
            logs.append(self.late.guardrails.log_alarm(name))
        return log_mean(logs)

    @property
    def log_e_inferior(self) -> float:
        """log E that people prefer stable, likewise."""
        late = [] if self.late is None else [self.late.evidence.log_e_inferior]
        return log_mean([self.evidence.log_e_inferior, *late])

    @property
    def log_e_split(self) -> float:
        """log E that users, or places on the page, are not split as intended: the largest of all."""
        every = [self.guardrails, *([] if self.late is None else [self.late.guardrails])]
        return max(max(one.log_e_split, one.log_e_order) for one in every)


def weigh(rules: Rules, inputs: Inputs) -> Findings:
    """Weigh everything there is."""
    evidence = weigh_voters(
        inputs.voters, cap=rules.cap, now=inputs.now, alpha=rules.alpha, delta=rules.delta,
        max_users=rules.max_users * inputs.num_tries,
    )  # fmt: skip
    guardrails, drift = _judge_drift(
        rules, inputs, _judge(rules, inputs, inputs.observed, inputs.voters, is_late=False)
    )
    return Findings(
        evidence=evidence,
        guardrails=guardrails,
        drift=drift,
        late=None if inputs.late_voters is None else _weigh_late(rules, inputs, inputs.late_voters),
        fragility=count_users_to_lose(evidence.scores, rules.cap, rules.alpha, rules.delta),
        slices=judge_slices(
            inputs.slices,
            cap=rules.cap,
            alpha=rules.alpha,
            threshold=rules.slice_threshold,
            accepted=rules.accept_slices,
        ),
        positions=inputs.positions,
        tripwires=judge_tripwires(
            inputs.traits,
            evidence,
            margins=rules.tripwires,
            accepted=rules.accept_tripwires,
            alpha=rules.alpha,
            min_users=rules.min_users,
            reward_gain=inputs.reward_gain,
        ),
    )


def _judge_drift(rules: Rules, inputs: Inputs, others: Guardrails) -> tuple[Guardrails, Drift | None]:
    """The other guardrails and that of the divergence, which is of the weights alone and so of the trial, not of a late stage."""
    if rules.kl is None:
        return others, None
    guardrail, drift = judge_divergence(
        inputs.divergences,
        margin=rules.kl.margin,
        alpha=rules.alpha,
        is_seeable=any(voter.first is not None for voter in inputs.voters),
        accepts_blind=KL in rules.accept_blind,
    )
    return replace(others, rates=(*others.rates, guardrail)), drift


def weigh_series(rules: Rules, inputs: Inputs) -> tuple[Point, ...]:
    """The trial's evidence as its users entered, for display."""
    return draw_series(
        inputs.voters, cap=rules.cap, now=inputs.now, alpha=rules.alpha, delta=rules.delta,
        max_users=rules.max_users * inputs.num_tries,
    )  # fmt: skip


def log_rollback(findings: Findings, rules: Rules) -> tuple[float, Reason]:
    """log of .4 E_preference + .3 E_harm + .2 E_errors + .1 E_latency, and the reason that weighs most.

    Without the guardrails whose action is another one, and with those besides these four that are to roll back.
    """
    logs = {Reason.INFERIOR: findings.log_e_inferior}
    logs |= {REASON_OF[name]: findings.log_alarm(name) for name in rules.list_guardrails("roll_back")}
    terms = {name: math.log(ROLLBACK_WEIGHTS.get(name, OTHER_WEIGHT)) + log_e for name, log_e in logs.items()}
    top = max(terms.values())
    total = top + math.log(sum(math.exp(term - top) for term in terms.values()))
    return total, max(terms, key=lambda name: terms[name])


def find_alarm(findings: Findings, rules: Rules) -> str | None:
    """A guardrail that is to pause and whose alarm alone would roll back, by the same weights."""
    for name in rules.list_guardrails("pause"):
        weight = ROLLBACK_WEIGHTS.get(REASON_OF[name], OTHER_WEIGHT)
        if math.log(weight) + findings.log_alarm(name) >= math.log(rules.rollback_threshold):
            return name
    return None


def _weigh_late(rules: Rules, inputs: Inputs, voters: Sequence[Voter]) -> Late:
    evidence = weigh_voters(voters, cap=LATE_CAP, now=inputs.now, alpha=rules.alpha, delta=rules.delta)
    return Late(evidence, _judge(rules, inputs, inputs.late_observed, voters, is_late=True))


def _judge(
    rules: Rules, inputs: Inputs, observed: Sequence[Observation], voters: Sequence[Voter], *, is_late: bool
) -> Guardrails:
    return judge_guardrails(
        observed, voters, ceilings=rules.ceilings, alpha=rules.alpha, max_ratio=rules.max_ratio,
        accept_blind=rules.accept_blind, sees_harm=inputs.sees_harm, is_late=is_late,
    )  # fmt: skip
