"""What a terminal of 80 columns shows of rollouts: every id whole, however long its neighbours are."""

import io

from rich.console import Console, RenderableType

from prefloop.rollouts.records import AuditEvent, Evidence, Guardrail, Rollout
from prefloop.rollouts.view import render_decision, render_rollout, tabulate_rollouts
from prefloop.terminal import format_evidence

CANARY, STABLE, ACTOR = "c-000012-abcdefabcdef", "c-000011-0123456789ab", "key:fedcba987654"
DIGEST = "0123456789abcdef" * 4
ROLLOUT = Rollout(
    id="r-000012", checkpoint=CANARY, stable=STABLE, aa=False, phase="WaitingPromotion", step=2, num_steps=4, weight=0.25,
    generation=33, decision_digest=DIGEST, created_at=1.7e9, verdict_sentence="People prefer the canary.",
    evidence=Evidence(1234, 7.3, 20.0, 0.12, -0.02, 0.2, "user", 12), weight_of="canary", reason="Superior",
    guardrails=[
        Guardrail("errors", "pass", 0, 12_345, "roll_back"),
        Guardrail("token_latency (alarm only)", "not enough data", 99_999, 5, "warn"),
        Guardrail("harm", "blind", 451, 0, "roll_back", waived=True),
    ],
    events=[AuditEvent(1.7e9, "Paused", "WaitingPromotion", ACTOR, "Resumed", "a long note that goes on and on " * 3)],
    actions=["approve", "abort"],
)  # fmt: skip


def show(what: RenderableType) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=80, markup=False).print(what)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def test_ids_and_times_are_whole_at_80_columns() -> None:
    for what, ids in (
        (tabulate_rollouts([ROLLOUT]), ("r-000012", CANARY, "WaitingPromotion")),
        (render_rollout(ROLLOUT), ("r-000012", CANARY, STABLE, ACTOR, "not enough data", "99,999")),
        (render_decision(ROLLOUT), ("r-000012", CANARY, STABLE, DIGEST)),
    ):
        lines = show(what)
        assert [name for name in ids if not any(name in line for line in lines)] == []


def test_a_decision_names_only_the_guardrails_that_have_not_passed() -> None:
    text = "\n".join(show(render_decision(ROLLOUT)))
    assert "token_latency" in text and "harm" in text and "errors" not in text
    assert "accepted" in text and "generation 33" in text and "7.3 of 20" in text


def test_an_evidence_of_three_hundred_digits_takes_few_columns() -> None:
    assert format_evidence(1e300, 20.0) == "1e+300 of 20"
    assert format_evidence(7.25, 20.0) == "7.2 of 20"
