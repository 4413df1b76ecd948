"""The operators' HTTP: checkpoints, status, rollouts and what may be done with them.

Every route needs the scope operator (or admin): guarded.py sees to it. Approvals carry the generation and decision
digest that were seen and get 409 when either has moved on.
"""

from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from feedback.choices import count_outbox
from feedback.errors import ManifestError
from gateway.access.auth import require_scope
from gateway.api.engines import show_engine
from gateway.api.guarded import OperatorRoute
from gateway.errors import ApiError, RefusedAction, bad_request, not_found
from gateway.rollout.pure import machine
from gateway.rollout.view import to_plain
from gateway.serving.context import Context
from gateway.tables.checkpoints import CheckpointRow, get_checkpoint
from gateway.tables.rollouts import active_rollout, get_rollout, list_rollouts
from gateway.tables.rows import RolloutRow
from gateway.tables.serving import StaleController, get_stable

_T = TypeVar("_T")


class NewCheckpoint(BaseModel):
    """A checkpoint directory, visible to the gateway and the engines."""

    path: str = Field(min_length=1)


class NewRollout(BaseModel):
    """Either stable against itself, or a known checkpoint."""

    aa: bool = False
    checkpoint: str | None = None


class Approval(BaseModel):
    """What the operator saw."""

    generation: int
    decision_digest: str


class RequiredNote(BaseModel):
    """Why an admin promotes past the gates: kept in the audit trail."""

    note: str = Field(min_length=1, max_length=500)


class Note(BaseModel):
    """Why, in the operator's words: kept in the audit trail, and steers nothing."""

    note: str = Field(default="", max_length=500)


def build_operator_router(context: Context) -> APIRouter:
    """All routes under /operator/v1 but those of keys."""
    router = APIRouter(prefix="/operator/v1", route_class=OperatorRoute)
    _add_checkpoint_routes(router, context)
    _add_rollout_routes(router, context)
    _add_action_routes(router, context)
    return router


def _add_checkpoint_routes(router: APIRouter, context: Context) -> None:
    @router.post("/checkpoints")
    async def register(body: NewCheckpoint, response: Response) -> dict[str, Any]:
        try:
            row, is_new = await context.controller.registry.register(body.path)
        except (OSError, ValueError, ManifestError) as error:
            raise bad_request(f"No valid checkpoint at this path: {error}", param="path") from error
        response.status_code = 201 if is_new else 200
        return {"id": row.id, "digest": row.digest, "number": row.number, "status": row.status}

    @router.get("/checkpoints")
    async def checkpoints() -> dict[str, Any]:
        rows = await context.controller.registry.list_checkpoints()
        return {"data": [{**_show_checkpoint(row), "may_delete": may_delete} for row, may_delete in rows]}

    @router.delete("/checkpoints/{checkpoint}")
    async def delete(checkpoint: str) -> dict[str, Any]:
        """Give up a checkpoint for good; whoever owns its directory may remove it then."""
        return _show_checkpoint(await _refuse_politely(context.controller.registry.delete(checkpoint)))

    @router.get("/status")
    async def status() -> dict[str, Any]:
        return await build_status(context)


def _add_rollout_routes(router: APIRouter, context: Context) -> None:
    @router.get("/rollouts")
    async def rollouts(limit: int = 20) -> dict[str, Any]:
        rows = await context.writer.arun(lambda conn: list_rollouts(conn, max(1, min(limit, 100))))
        return {"data": [to_plain(await context.controller.assessor.show(row)) for row in rows]}

    @router.get("/rollouts/{rollout}")
    async def rollout_by_id(rollout: str) -> dict[str, Any]:
        row = await context.writer.arun(lambda conn: get_rollout(conn, rollout))
        if row is None:
            raise not_found(f"No rollout {rollout}.")
        return to_plain(await context.controller.assessor.show(row))

    @router.post("/rollouts", status_code=201)
    async def start(body: NewRollout) -> dict[str, Any]:
        if body.aa == (body.checkpoint is not None):
            raise bad_request("Give either aa: true or a checkpoint.")
        if body.aa:
            return _show_checkpoint(await _refuse_politely(context.controller.registry.start_aa()))
        return _show_checkpoint(
            await _refuse_politely(context.controller.registry.start_rollout(body.checkpoint or ""))
        )

    @router.post("/rollouts:rollback", status_code=201)
    async def rollback(request: Request) -> dict[str, Any]:
        """While baking: back to the old checkpoint at once. Otherwise: put stable's parent on trial."""
        actor = "key:" + require_scope(request, "operator").key_id
        row = await context.writer.arun(lambda conn: active_rollout(conn, context.settings.policy))
        if row is not None and row.phase == machine.BAKING:
            return await _act(
                context, context.controller.actions.abort(row.id, actor, reason=machine.Reason.ROLLED_BACK)
            )
        stable = await context.writer.arun(lambda conn: get_stable(conn, context.settings.policy))
        if stable is None or stable.parent is None:
            raise ApiError(409, "Stable has no parent to go back to.", code="conflict")
        return _show_checkpoint(await _refuse_politely(context.controller.registry.start_rollout(stable.parent)))


def _add_action_routes(router: APIRouter, context: Context) -> None:
    actions = context.controller.actions

    @router.post("/rollouts/{rollout}:approve")
    async def approve(request: Request, rollout: str, body: Approval) -> dict[str, Any]:
        actor = "key:" + require_scope(request, "operator").key_id
        return await _act(context, actions.approve(rollout, body.generation, body.decision_digest, actor))

    @router.post("/rollouts/{rollout}:promote")
    async def promote(request: Request, rollout: str, body: RequiredNote) -> dict[str, Any]:
        """Past a gate that does not pass: admins only."""
        actor = "key:" + require_scope(request, "admin").key_id
        return await _act(context, actions.promote_past(rollout, actor, body.note))

    @router.post("/rollouts/{rollout}:abort")
    async def abort(request: Request, rollout: str, body: Note | None = None) -> dict[str, Any]:
        actor = "key:" + require_scope(request, "operator").key_id
        return await _act(context, actions.abort(rollout, actor, note=(body or Note()).note))

    @router.post("/rollouts/{rollout}:pause")
    async def pause(request: Request, rollout: str, body: Note | None = None) -> dict[str, Any]:
        actor = "key:" + require_scope(request, "operator").key_id
        return await _act(context, actions.pause(rollout, actor, (body or Note()).note))

    @router.post("/rollouts/{rollout}:resume")
    async def resume(request: Request, rollout: str) -> dict[str, Any]:
        actor = "key:" + require_scope(request, "operator").key_id
        return await _act(context, actions.resume(rollout, actor))


async def build_status(context: Context) -> dict[str, Any]:
    """What the demo's screen and the console poll: what serves, the rollout that is on, and counters."""
    policy = context.settings.policy
    view, counters = context.deployment.view, context.deployment.counters
    stable, canary, row, num_pending = await context.writer.aread(
        lambda conn: (
            get_stable(conn, policy), get_checkpoint(conn, view.canary or ""), active_rollout(conn, policy),
            count_outbox(conn),
        )
    )  # fmt: skip
    return {
        "policy": policy,
        "preset": context.settings.preset,
        "stable": None if stable is None else _show_checkpoint(stable),
        "canary": None if canary is None else _show_checkpoint(canary),
        "rollout": None if row is None else to_plain(await context.controller.assessor.show(row)),
        "counters": {
            "requests": counters.requests,
            "failed_requests": counters.failed_requests,
            "comparisons": counters.comparisons,
            "choices": counters.choices,
            "not_paired": dict(counters.not_paired),
            "outbox_pending": num_pending,
        },
        "canary_first_answer_at": context.deployment.first_answer_at,
        "controller": {"problem": context.controller.problem, "num_failures": context.controller.num_failures},
        "swap": {"last_swap_s": context.controller.last_swap_s},
        "engines": [show_engine(engine) for engine in context.deployment.engines.values()],
        "gateways": [
            {"id": report.id, "generation": report.generation, "in_flight": dict(report.in_flight)}
            for report in context.controller.membership.list_live()
        ],
    }


async def _act(context: Context, action: Awaitable[RolloutRow]) -> dict[str, Any]:
    row = await _refuse_politely(action)
    return to_plain(await context.controller.assessor.show(row))


async def _refuse_politely(action: Awaitable[_T]) -> _T:
    try:
        return await action
    except LookupError as error:
        raise not_found(f"Not found: {error}.") from error
    except RefusedAction as error:
        raise ApiError(409, str(error), code="conflict") from error
    except StaleController as error:
        raise ApiError(409, "The rollout moved on at this moment: look again.", code="conflict") from error


def _show_checkpoint(row: CheckpointRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "number": row.number,
        "parent": row.parent,
        "digest": row.digest,
        "status": row.status,
        "metrics": row.parsed.metrics,
        "created_at": row.created_at,
    }
