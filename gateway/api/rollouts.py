"""The operators' routes of rollouts, and what may be done with them.

Approvals carry the generation and decision digest that were seen and get 409 when either has moved on.
"""

import asyncio
from collections.abc import Awaitable
from typing import Annotated

import msgspec

from gateway.access.keys import Identity
from gateway.api.checkpoints import CheckpointView, show_checkpoint
from gateway.api.conflicts import answer_conflicts
from gateway.api.routes import OperatorRoutes
from gateway.errors import bad_request, not_found
from gateway.rollout.assessment import digest_code
from gateway.rollout.desired_state import read_rules
from gateway.rollout.pure import machine
from gateway.rollout.pure.decisions import replay_decision
from gateway.rollout.view import ReplayView, RolloutView, show_replay
from gateway.serving.context import Context
from gateway.tables.rollouts import get_rollout, list_decisions, list_rollouts
from gateway.tables.rows import RolloutRow

_MAX_LISTED = 100
_MAX_NOTE = 500
PROMOTE_SCOPE = "admin"


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
    async def rollouts(identity: Identity, query: Newest) -> RolloutList:
        rows = await context.writer.arun(lambda conn: list_rollouts(conn, max(1, min(query.limit, _MAX_LISTED))))
        return RolloutList([await show_rollout(context, row, identity) for row in rows])

    @routes.add("GET", "/rollouts/{rollout}", "Show a rollout", {200: RolloutView}, 404)
    async def rollout_by_id(identity: Identity, rollout: str) -> RolloutView:
        row = await context.writer.arun(lambda conn: get_rollout(conn, rollout))
        if row is None:
            raise not_found(f"No rollout {rollout}.")
        return await show_rollout(context, row, identity)

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
        "POST", "/rollouts:rollback", "Let what served before serve again, without a trial", {200: RolloutView}, 404, 409,
        body=Note,
    )  # fmt: skip
    async def rollback(identity: Identity, body: Note) -> RolloutView:
        policy, actor = context.settings.policy, _name_actor(identity)
        return await _act(context, context.controller.actions.roll_back_last(policy, actor, note=body.note), identity)


def add_replay_route(routes: OperatorRoutes, context: Context) -> None:
    """GET /operator/v1/rollouts/{rollout}/replay."""

    @routes.add("GET", "/rollouts/{rollout}/replay", "Make a rollout's decisions again", {200: ReplayView}, 404)
    async def replay(_: Identity, rollout: str) -> ReplayView:
        row = await context.writer.arun(lambda conn: get_rollout(conn, rollout))
        if row is None:
            raise not_found(f"No rollout {rollout}.")
        decisions = await context.writer.aread(lambda conn: list_decisions(conn, rollout))
        code = await asyncio.to_thread(digest_code)
        views = [
            show_replay(at, decision, await asyncio.to_thread(replay_decision, decision, read_rules, code))
            for at, decision in decisions
        ]
        return ReplayView(rollout, views)


def add_action_routes(routes: OperatorRoutes, context: Context) -> None:
    """POST /operator/v1/rollouts/{rollout}:approve, :promote, :abort, :rollback, :pause, :resume, :skip and :retry."""
    actions, answers, refusals = context.controller.actions, {200: RolloutView}, (404, 405, 409)

    @routes.add(
        "POST", "/rollouts/{rollout}:approve", "Promote the canary, as what was seen of it says", answers, *refusals,
        body=Approval,
    )  # fmt: skip
    async def approve(identity: Identity, rollout: str, body: Approval) -> RolloutView:
        seen = body.generation, body.decision_digest
        return await _act(context, actions.approve(rollout, *seen, _name_actor(identity)), identity)

    @routes.add(
        "POST", "/rollouts/{rollout}:promote", "Promote the canary past a gate, with a written reason: admins only",
        answers, *refusals, body=RequiredNote, scope=PROMOTE_SCOPE,
    )  # fmt: skip
    async def promote(identity: Identity, rollout: str, body: RequiredNote) -> RolloutView:
        return await _act(context, actions.promote_past(rollout, _name_actor(identity), body.note), identity)

    @routes.add("POST", "/rollouts/{rollout}:abort", "End the rollout", answers, *refusals, body=Note)
    async def abort(identity: Identity, rollout: str, body: Note) -> RolloutView:
        return await _act(context, actions.abort(rollout, _name_actor(identity), note=body.note), identity)

    @routes.add(
        "POST", "/rollouts/{rollout}:rollback", "Let what served before this promotion serve again", answers, *refusals,
        body=Note,
    )  # fmt: skip
    async def roll_back(identity: Identity, rollout: str, body: Note) -> RolloutView:
        return await _act(context, actions.roll_back(rollout, _name_actor(identity), note=body.note), identity)

    @routes.add("POST", "/rollouts/{rollout}:skip", "Go to the ramp's next step now", answers, *refusals)
    async def skip(identity: Identity, rollout: str) -> RolloutView:
        return await _act(context, actions.skip_step(rollout, _name_actor(identity)), identity)

    @routes.add(
        "POST", "/rollouts/{rollout}:retry", "Put the checkpoint on trial again, with the evidence there is", answers,
        *refusals,
    )  # fmt: skip
    async def retry(identity: Identity, rollout: str) -> RolloutView:
        return await _act(context, actions.retry(rollout, _name_actor(identity)), identity)

    @routes.add("POST", "/rollouts/{rollout}:pause", "Hold the rollout", answers, *refusals, body=Note)
    async def pause(identity: Identity, rollout: str, body: Note) -> RolloutView:
        return await _act(context, actions.pause(rollout, _name_actor(identity), body.note), identity)

    @routes.add("POST", "/rollouts/{rollout}:resume", "Let the rollout go on", answers, *refusals)
    async def resume(identity: Identity, rollout: str) -> RolloutView:
        return await _act(context, actions.resume(rollout, _name_actor(identity)), identity)


def _name_actor(identity: Identity) -> str:
    """Who, in the audit trail."""
    return f"key:{identity.key_id}"


async def _act(context: Context, action: Awaitable[RolloutRow], identity: Identity) -> RolloutView:
    return await show_rollout(context, await answer_conflicts(action), identity)


async def show_rollout(context: Context, row: RolloutRow, identity: Identity) -> RolloutView:
    """What an operator sees, with those actions alone that this key may take and that still lead somewhere."""
    view, serves = await context.controller.assessor.show(row), context.deployment.view.stable
    actions = [name for name in view.actions if name != "promote" or identity.may(PROMOTE_SCOPE)]
    if (view.phase == machine.HEALTHY and serves != view.checkpoint) or (
        view.phase == machine.DEGRADED and serves != view.stable
    ):
        actions = []
    return view if actions == view.actions else msgspec.structs.replace(view, actions=actions)
