"""Demonstrations: prompts with ideal answers that experts wrote, on their way to the log.

The same demonstration has the same id and the same event, however often and by whichever way it comes: readers of the
log take it once. Does not judge what is ideal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from feedback.choices import outbox
from feedback.database import insert_or_ignore
from feedback.events import Demonstration, Event, encode_event, new_event


def new_demonstration(
    messages: list[dict[str, Any]],
    answer: str,
    *,
    channel: str,
    now: float,
    policy: str,
    app: str,
    tags: Mapping[str, str],
    tools: list[dict[str, Any]] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Event:
    """The event of a demonstration. channel: "api" or "import"; now: epoch seconds."""
    said = [policy, app, messages, answer, tools, chat_template_kwargs]
    name = "dem_" + hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()[:32]
    demonstration = Demonstration(
        id=name,
        messages=messages,
        answer=answer,
        channel=channel,
        created_at=now,
        policy=policy,
        app=app,
        tags=dict(tags),
        tools=tools,
        chat_template_kwargs=chat_template_kwargs,
    )
    source = "import" if channel == "import" else "prefloop/gateway"
    return new_event(demonstration, source=source, now=now, event_id=name)


def add_demonstration(connection: sa.Connection, event: Event) -> None:
    """Have the relay move a demonstration to the log once this transaction has committed; again is harmless."""
    headers, value = encode_event(event)
    row = {
        "event_id": event.id,
        "key": event.key.encode(),
        "headers": msgspec.msgpack.encode(headers),
        "value": value,
        "created_at": event.time,
    }
    insert_or_ignore(connection, outbox, row)
