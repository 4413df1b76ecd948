"""The operators' routes of rollouts, and what may be done with them.

Approvals carry the generation and decision digest that were seen and get 409 when either has moved on.
"""

from collections.abc import Awaitable
from typing import Annotated

import msgspec

from gateway.access.keys import Identity
from gateway.api.checkpoints import CheckpointView, show_checkpoint
from gateway.api.conflicts import answer_conflicts
from gateway.api.routes import OperatorRoutes
from gateway.errors import ApiError, bad_request, not_found
from gateway.rollout.pure import machine
from gateway.rollout.view import RolloutView
from gateway.serving.context import Context
from gateway.tables.rollouts import active_rollout, get_rollout, list_rollouts
from gateway.tables.rows import RolloutRow
from gateway.tables.serving import get_stable

_MAX_LISTED = 100
_MAX_NOTE = 500


class NewRollout(msgspec.Struct, frozen=True):
    """Either stable against itself, or a known checkpoint."""

    aa: bool = False
    checkpoint: str | None = None


class Approval(msgspec.Struct, frozen=True):
    """What the operator saw."""

    generation: int
    decision_digest: str


class RequiredNote(msgspec.Struct, frozen=True):
    """Why an admin promotes past the gates: kept in the audit trail."""

    note: Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_NOTE)]


class Note(msgspec.Struct, frozen=True):
    """Why, in the operator's words: kept in the audit trail, and steers nothing."""

    note: Annotated[str, msgspec.Meta(max_length=_MAX_NOTE)] = ""


class Newest(msgspec.Struct, frozen=True):
    """How many of the newest, at most 100."""

    limit: int = 20


class RolloutList(msgspec.Struct, frozen=True):
    """Newest first."""

    data: list[RolloutView]


def add_rollout_routes(routes: OperatorRoutes, context: Context) -> None:
    """GET and POST /operator/v1/rollouts."""

    @routes.add("GET", "/rollouts", "List the rollouts", {200: RolloutList}, query=Newest)
    async def rollouts(_: Identity, query: Newest) -> RolloutList:
        rows = await context.writer.arun(lambda conn: list_rollouts(conn, max(1, min(query.limit, _MAX_LISTED))))
        return RolloutList([await context.controller.assessor.show(row) for row in rows])

    @routes.add("GET", "/rollouts/{rollout}", "Show a rollout", {200: RolloutView}, 404)
    async def rollout_by_id(_: Identity, rollout: str) -> RolloutView:
        row = await context.writer.arun(lambda conn: get_rollout(conn, rollout))
        if row is None:
            raise not_found(f"No rollout {rollout}.")
        return await context.controller.assessor.show(row)

    @routes.add(
        "POST", "/rollouts", "Put a checkpoint, or stable itself, on trial", {201: CheckpointView}, 404, 409,
        body=NewRollout,
    )  # fmt: skip
    async def start(_: Identity, body: NewRollout) -> CheckpointView:
        if body.aa == (body.checkpoint is not None):
            raise bad_request("Give either aa: true or a checkpoint.")
        registry = context.controller.registry
        started = registry.start_aa() if body.aa else registry.start_rollout(body.checkpoint or "")
        return show_checkpoint(await answer_conflicts(started))

    @routes.add(
        "POST", "/rollouts:rollback", "Go back: while baking at once, otherwise by a trial of stable's parent",
        {201: (RolloutView, CheckpointView)}, 404, 409,
    )  # fmt: skip
    async def rollback(identity: Identity) -> RolloutView | CheckpointView:
        row = await context.writer.arun(lambda conn: active_rollout(conn, context.settings.policy))
        if row is not None and row.phase == machine.BAKING:
            aborted = context.controller.actions.abort(row.id, _name_actor(identity), reason=machine.Reason.ROLLED_BACK)
            return await _act(context, aborted)
        stable = await context.writer.arun(lambda conn: get_stable(conn, context.settings.policy))
        if stable is None or stable.parent is None:
            raise ApiError(409, "Stable has no parent to go back to.", code="conflict")
        return show_checkpoint(await answer_conflicts(context.controller.registry.start_rollout(stable.parent)))


def add_action_routes(routes: OperatorRoutes, context: Context) -> None:
    """POST /operator/v1/rollouts/{rollout}:approve, :promote, :abort, :pause and :resume."""
    actions, answers, refusals = context.controller.actions, {200: RolloutView}, (404, 405, 409)

    @routes.add(
        "POST", "/rollouts/{rollout}:approve", "Promote the canary, as what was seen of it says", answers, *refusals,
        body=Approval,
    )  # fmt: skip
    async def approve(identity: Identity, rollout: str, body: Approval) -> RolloutView:
        seen = body.generation, body.decision_digest
        return await _act(context, actions.approve(rollout, *seen, _name_actor(identity)))

    @routes.add(
        "POST", "/rollouts/{rollout}:promote", "Promote the canary past a gate, with a written reason: admins only",
        answers, *refusals, body=RequiredNote, scope="admin",
    )  # fmt: skip
    async def promote(identity: Identity, rollout: str, body: RequiredNote) -> RolloutView:
        return await _act(context, actions.promote_past(rollout, _name_actor(identity), body.note))

    @routes.add("POST", "/rollouts/{rollout}:abort", "End the rollout", answers, *refusals, body=Note)
    async def abort(identity: Identity, rollout: str, body: Note) -> RolloutView:
        return await _act(context, actions.abort(rollout, _name_actor(identity), note=body.note))

    @routes.add("POST", "/rollouts/{rollout}:pause", "Hold the rollout", answers, *refusals, body=Note)
    async def pause(identity: Identity, rollout: str, body: Note) -> RolloutView:
        return await _act(context, actions.pause(rollout, _name_actor(identity), body.note))

    @routes.add("POST", "/rollouts/{rollout}:resume", "Let the rollout go on", answers, *refusals)
    async def resume(identity: Identity, rollout: str) -> RolloutView:
        return await _act(context, actions.resume(rollout, _name_actor(identity)))


def _name_actor(identity: Identity) -> str:
    """Who, in the audit trail."""
    return f"key:{identity.key_id}"


async def _act(context: Context, action: Awaitable[RolloutRow]) -> RolloutView:
    row = await answer_conflicts(action)
    return await context.controller.assessor.show(row)
