"""What one person may see and do in the playground of their own machine: what was learnt of them, trials, before and after.

For programs on this machine alone, addressed by its own name, and only where `gateway.playground_operates` is set: they
need no key. Texts of prompts and answers are never among what is shown. What the trainer does is asked of the trainer; where
it is away, that is said.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.access.clients import find_request_client, is_loopback
from gateway.access.limits.allowance import KeyLimits
from gateway.api.conflicts import answer_conflicts
from gateway.api.playground import (
    PLAYGROUND,
    build_chat_body,
    is_local_call,
    refuse_other_sites,
    refuse_other_types,
)
from gateway.api.request_body import decode_body, read_body
from gateway.api.routes import render
from gateway.errors import ApiError, EngineUnavailable, SwapError, forbidden, not_found, unavailable
from gateway.rollout.pure import machine
from gateway.serving.dispatch import answer_chat
from gateway.tables.checkpoints import CheckpointRow, list_checkpoints
from gateway.tables.rollouts import active_rollout
from gateway.tables.serving import get_stable

if TYPE_CHECKING:
    from gateway.http.call import Call, Handler
    from gateway.rollout.view import RolloutView
    from gateway.serving.context import Context
    from gateway.serving.routing import Header

_logger = logging.getLogger(__name__)

BESIDE_PATH = b"/playground/beside"
_ACTOR = "playground"
_TRAINER_TIMEOUT_S = 2.0
_MAX_BYTES = 4096
_MAX_REASON = 300
_NO_STORE = {"cache-control": "no-store"}
_OPERATOR = replace(PLAYGROUND, scopes=frozenset({"app", "operator"}), pairs=False)


class Style(msgspec.Struct, frozen=True):
    """What one feature of an answer's text is worth: its weight, and how unsure that is."""

    name: str
    weight: float
    sd: float


class Learnt(msgspec.Struct, frozen=True):
    """The reward model. prequential_accuracy: of the last num_foreseen choices, each guessed before it was learnt from."""

    version: int = 0
    prequential_accuracy: float | None = None
    num_foreseen: int = 0
    style: tuple[Style, ...] = ()


class Doing(msgspec.Struct, frozen=True):
    """What the trainer does and why; progress: 0 to 1. seconds_left: of this state, None where that is not known."""

    state: str = "waiting"
    number: int | None = None
    progress: float = 0.0
    reason: str = ""
    seconds_left: float | None = None


class Finished(msgspec.Struct, frozen=True):
    """A round that ended, in a checkpoint or in a reason why not."""

    number: int
    checkpoint: str | None = None
    reason: str = ""


class TrainerView(msgspec.Struct, frozen=True):
    """Of the trainer's /status what the page shows. decisive: choices that prefer one answer."""

    decisive: int = 0
    new_since_round: int = 0
    round_every: int = 0
    reward: Learnt = Learnt()
    round: Doing = Doing()
    rounds: tuple[Finished, ...] = ()


class Trial(msgspec.Struct, frozen=True):
    """The rollout that is on, as that person sees it. unit: what `users` counts; note: the verdict in a sentence.

    may_decide: "approve" is possible now.
    """

    id: str
    checkpoint: str
    phase: str
    generation: int
    decision_digest: str
    note: str
    unit: str
    users: int
    min_users: int
    wins: int
    losses: int
    ties: int
    e: float
    threshold: float
    may_decide: bool


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows. operates: false, and nothing else, where the playground shows nothing of it.

    problem: why there is no trainer, empty if there is. first, stable: ids of checkpoint 0 and of the one that serves.
    """

    object: str = "playground.learning"
    operates: bool
    problem: str = ""
    first: str | None = None
    stable: str | None = None
    trainer: TrainerView | None = None
    trial: Trial | None = None


class Seen(msgspec.Struct, frozen=True):
    """The trial as it was shown."""

    rollout: str
    generation: int
    decision_digest: str


class Ended(msgspec.Struct, frozen=True):
    """The trial that shall end."""

    rollout: str


class Beside(msgspec.Struct, frozen=True):
    """A conversation for the first checkpoint, or for the one that serves now."""

    messages: list[dict[str, Any]]
    checkpoint: Literal["first", "stable"]


def build_teaching_router(context: Context) -> APIRouter:
    """Return the routes under /playground that are not an engine's."""
    router = APIRouter(include_in_schema=False)

    def admit(request: Request) -> None:
        header = _header_of(request)
        refuse_other_sites(header)
        client = find_request_client(request, context.settings.gateway.trusted_proxies)
        refuse_strangers(context, header, is_local=client.is_local)

    async def read_seen(request: Request, kind: type[msgspec.Struct]) -> Any:
        admit(request)
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise ApiError(415, "Send application/json.")
        return decode_body(await read_body(request, _MAX_BYTES), msgspec.json.Decoder(kind).decode, "request")

    @router.get("/playground/learning")
    async def show_learning(request: Request) -> Response:
        if not context.settings.gateway.playground_operates:
            return render(Learning(operates=False), headers=_NO_STORE)
        admit(request)
        return render(await build_learning(context), headers=_NO_STORE)

    @router.post("/playground/trial:approve")
    async def approve(request: Request) -> Response:
        seen: Seen = await read_seen(request, Seen)
        actions = context.controller.actions
        await answer_conflicts(actions.approve(seen.rollout, seen.generation, seen.decision_digest, _ACTOR))
        return render(await build_learning(context), headers=_NO_STORE)

    @router.post("/playground/trial:abort")
    async def abort(request: Request) -> Response:
        ended: Ended = await read_seen(request, Ended)
        await answer_conflicts(context.controller.actions.abort(ended.rollout, _ACTOR))
        return render(await build_learning(context), headers=_NO_STORE)

    return router


def build_beside_handler(context: Context) -> Handler:
    """The handler of BESIDE_PATH: one answer, of a checkpoint by name."""
    section = context.settings.gateway
    identity = replace(_OPERATOR, limits=KeyLimits(requests_per_minute=section.playground_requests_per_minute))
    decoder = msgspec.json.Decoder(Beside)

    async def ask(call: Call) -> None:
        refuse_other_sites(call.header)
        refuse_strangers(context, call.header, is_local=is_local_call(call, section))
        refuse_other_types(call)
        asked = decode_body(call.body, decoder.decode, "question")
        row = await _find_checkpoint(context, asked.checkpoint)
        context.deployment.hold(row.id)  # or the controller would let it go before it is asked
        try:
            await context.swap.load(row)
            await answer_chat(context, identity, call, {}, build_chat_body(asked.messages, row.id, section))
        except SwapError as error:
            _logger.warning("%s cannot be asked: %s", row.id, error)
            raise unavailable("The engine cannot load that checkpoint now.") from error
        finally:
            context.deployment.release(row.id)

    return ask


def refuse_strangers(context: Context, header: Header, *, is_local: bool) -> None:
    """Only where a setting allows it, for this machine, under its own name: other names may lead here too. Raises ApiError."""
    host = (header(b"host") or "").rpartition("@")[2]
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if not context.settings.gateway.playground_operates or not is_local or not is_loopback(name):
        raise forbidden("This is for this machine only, where `gateway.playground_operates` allows it.")


async def build_learning(context: Context) -> Learning:
    """What the page shows now."""
    policy = context.settings.policy
    stable, first, row = await context.writer.aread(
        lambda conn: (get_stable(conn, policy), _first_of(list_checkpoints(conn)), active_rollout(conn, policy))
    )
    trainer, problem = await _ask_trainer(context)
    return Learning(
        operates=True,
        problem=problem,
        first=None if first is None else first.id,
        stable=None if stable is None else stable.id,
        trainer=trainer,
        trial=None if row is None else show_trial(await context.controller.assessor.show(row)),
    )


def show_trial(view: RolloutView) -> Trial:
    """What the person sees of it."""
    seen = view.evidence
    return Trial(
        id=view.id,
        checkpoint=view.checkpoint,
        phase=view.phase,
        generation=view.generation,
        decision_digest=view.decision_digest,
        note=view.verdict_sentence,
        unit=seen.unit,
        users=seen.users,
        min_users=seen.min_users,
        wins=seen.wins,
        losses=seen.losses,
        ties=seen.ties + seen.both_bad,
        e=seen.e,
        threshold=seen.threshold,
        may_decide=view.phase == machine.WAITING,
    )


async def _ask_trainer(context: Context) -> tuple[TrainerView | None, str]:
    """What the trainer says it does, or why that is not known."""
    url = context.settings.gateway.trainer_url.rstrip("/")
    if not url:
        return None, "It is not known where the trainer is: set gateway.trainer_url."
    try:
        status, body = await context.upstream.call(url, "/status", None, timeout_s=_TRAINER_TIMEOUT_S)
        if status != 200:
            return None, f"The trainer answered {status}."
        found = msgspec.json.decode(body, type=TrainerView)
    except EngineUnavailable:
        return None, "The trainer does not answer."
    except msgspec.DecodeError as error:
        _logger.warning("the trainer's status cannot be read: %s", error)
        return None, "The trainer says something that cannot be read."
    doing = msgspec.structs.replace(found.round, reason=found.round.reason[:_MAX_REASON])
    last = tuple(msgspec.structs.replace(each, reason=each.reason[:_MAX_REASON]) for each in found.rounds[-1:])
    return msgspec.structs.replace(found, round=doing, rounds=last), ""


async def _find_checkpoint(context: Context, which: str) -> CheckpointRow:
    """Raises ApiError 404 where there is none, or its files are gone."""
    policy = context.settings.policy
    row = await context.writer.aread(
        lambda conn: get_stable(conn, policy) if which == "stable" else _first_of(list_checkpoints(conn))
    )
    if row is None or row.status == "deleted":
        raise not_found("There is no such checkpoint any more.")
    return row


def _first_of(rows: list[CheckpointRow]) -> CheckpointRow | None:
    return min(rows, key=lambda row: row.number, default=None)


def _header_of(request: Request) -> Header:
    return lambda name: request.headers.get(name.decode())
