"""Takes ideal answers that experts wrote: the trainer learns from them as demonstrations.

Acknowledged only after the transaction that holds the event has committed. The same demonstration again changes nothing.
"""

import time
from typing import Any, Literal

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from feedback.demonstrations import add_demonstration, new_demonstration
from feedback.errors import DatabaseError
from feedback.import_export.demonstrations import find_problem
from gateway.access.keys import Identity
from gateway.api.routes import OperatorRoutes
from gateway.errors import ApiError, bad_request, unavailable
from gateway.serving.body import check_depth
from gateway.serving.context import Context


class NewDemonstration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt with an ideal answer. `tags`: domain, language, task; `tools`, `chat_template_kwargs` as in a request."""

    messages: list[dict[str, Any]]
    answer: str
    tags: dict[str, str] = {}
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class StoredDemonstration(msgspec.Struct, frozen=True):
    """A demonstration that is stored; the same one has the same id."""

    id: str
    created: int
    object: Literal["demonstration"] = "demonstration"


def add_demonstration_route(routes: OperatorRoutes, context: Context) -> None:
    """POST /operator/v1/demonstrations."""

    @routes.add(
        "POST", "/demonstrations", "Give an ideal answer to learn from",
        {201: StoredDemonstration}, body=NewDemonstration,
    )  # fmt: skip
    async def take_demonstration(identity: Identity, body: NewDemonstration) -> StoredDemonstration:
        if problem := find_problem(body.messages, body.answer):
            raise bad_request(f"{problem}.", param="answer" if "answer" in problem else "messages")
        try:
            for part in (body.messages, body.tools, body.chat_template_kwargs):
                check_depth(part)
        except ValueError as error:
            raise bad_request(f"The demonstration is {error}.", param="messages") from None
        event = new_demonstration(
            body.messages,
            body.answer,
            channel="api",
            now=time.time(),
            policy=context.settings.policy,
            app=identity.app,
            tags=body.tags,
            tools=body.tools,
            chat_template_kwargs=body.chat_template_kwargs,
        )
        if len(msgspec.json.encode(event.data)) > context.settings.gateway.max_event_bytes:
            raise ApiError(413, "The demonstration is too long for an event.", code="request_too_large")
        try:
            await context.writer.arun(lambda conn: add_demonstration(conn, event))
        except (DatabaseError, SQLAlchemyError, OSError, TimeoutError) as error:
            raise unavailable("The demonstration could not be stored; send it again.") from error
        context.relay.notify()
        return StoredDemonstration(event.id, int(event.time))
