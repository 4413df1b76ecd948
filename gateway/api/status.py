"""GET /operator/v1/status, which the console, the command line and the demo poll."""

import msgspec

from feedback.choices import count_outbox
from gateway.access.keys import Identity
from gateway.api.checkpoints import CheckpointView, show_checkpoint
from gateway.api.engines import EngineView, show_engine
from gateway.api.rollouts import show_rollout
from gateway.api.routes import OperatorRoutes
from gateway.rollout.view import RolloutView
from gateway.serving.context import Context
from gateway.tables.checkpoints import get_checkpoint
from gateway.tables.rollouts import active_rollout
from gateway.tables.serving import get_stable


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What this gateway has counted since its start. `not_paired`: by reason."""

    requests: int
    failed_requests: int
    comparisons: int
    choices: int
    not_paired: dict[str, int]
    outbox_pending: int


class AskingView(msgspec.Struct, frozen=True, kw_only=True):
    """How the two answers of comparisons that are no duels are picked. `problem`: why they are random, "" if they are not.

    `shares`: as they are set; `num_by_share`: comparisons shown; `num_failures`: by why nothing was picked; `reward_version`: of
    the model that picked last.
    """

    scorer_url: str
    problem: str
    shares: dict[str, float]
    num_by_share: dict[str, int]
    num_failures: dict[str, int]
    reward_version: int | None


class SwapView(msgspec.Struct, frozen=True):
    """How long the last load of a checkpoint took, in seconds."""

    last_swap_s: float | None


class ControllerView(msgspec.Struct, frozen=True):
    """What the rollout controller of this gateway fails by now, empty if nothing; and how often it failed."""

    problem: str
    num_failures: int


class GatewayView(msgspec.Struct, frozen=True):
    """A live gateway: the generation it serves by, and its requests in flight by checkpoint."""

    id: str
    generation: int
    in_flight: dict[str, int]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What serves, the rollout that is on, and counters since the start."""

    policy: str
    preset: str
    stable: CheckpointView | None
    canary: CheckpointView | None
    rollout: RolloutView | None
    counters: Counters
    canary_first_answer_at: dict[str, float]
    asking: AskingView
    controller: ControllerView
    swap: SwapView
    engines: list[EngineView]
    gateways: list[GatewayView]


def add_status_route(routes: OperatorRoutes, context: Context) -> None:
    """GET /operator/v1/status."""

    @routes.add("GET", "/status", "Show what serves and how it goes", {200: Status})
    async def show_status(identity: Identity) -> Status:
        return await build_status(context, identity)


def show_asking(context: Context) -> AskingView:
    """How asking goes."""
    scorer = context.scorer
    return AskingView(
        scorer_url=scorer.url,
        problem=scorer.problem,
        shares={str(share): chance for share, chance in context.settings.gateway.asking.shares.items()},
        num_by_share=dict(scorer.num_by_share),
        num_failures=dict(scorer.num_failures),
        reward_version=scorer.version,
    )


async def build_status(context: Context, identity: Identity) -> Status:
    """The gateway's status now."""
    policy = context.settings.policy
    view, counters = context.deployment.view, context.deployment.counters
    stable, canary, row, num_pending = await context.writer.aread(
        lambda conn: (
            get_stable(conn, policy), get_checkpoint(conn, view.canary or ""), active_rollout(conn, policy),
            count_outbox(conn),
        )
    )  # fmt: skip
    return Status(
        policy=policy,
        preset=context.settings.preset,
        stable=None if stable is None else show_checkpoint(stable),
        canary=None if canary is None else show_checkpoint(canary),
        rollout=None if row is None else await show_rollout(context, row, identity),
        counters=Counters(
            requests=counters.requests,
            failed_requests=counters.failed_requests,
            comparisons=counters.comparisons,
            choices=counters.choices,
            not_paired=dict(counters.not_paired),
            outbox_pending=num_pending,
        ),
        canary_first_answer_at=dict(context.deployment.first_answer_at),
        asking=show_asking(context),
        controller=ControllerView(context.controller.problem, context.controller.num_failures),
        swap=SwapView(context.controller.last_swap_s),
        engines=[show_engine(engine) for engine in context.deployment.engines.values()],
        gateways=[
            GatewayView(report.id, report.generation, dict(report.in_flight))
            for report in context.controller.membership.list_live()
        ],
    )
