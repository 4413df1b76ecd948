"""What the playground's chat box asks: under an identity of its own, on the same path as every app's requests.

No key enters the browser; only our own page may ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway.access.keys import Identity
from gateway.errors import ApiError, bad_request, forbidden
from gateway.serving.dispatch import answer_chat
from gateway.serving.routing import Header

if TYPE_CHECKING:
    from gateway.http.call import Call, Handler
    from gateway.serving.context import Context

PLAYGROUND_PATH = b"/playground/chat"
PLAYGROUND = Identity(key_id="playground", app="playground", scopes=frozenset({"app"}), pairs=True)
_PASSED_ON = (b"x-prefloop-compare", b"x-prefloop-user", b"x-prefloop-conversation")


class Question(msgspec.Struct):
    """What the playground may say: the conversation, nothing else of the chat API."""

    messages: list[dict[str, Any]]


def build_playground_handler(context: Context) -> Handler:
    """The handler of PLAYGROUND_PATH."""

    async def ask(call: Call) -> None:
        refuse_other_sites(call.header)
        if not (call.header(b"content-type") or "").startswith("application/json"):
            raise ApiError(415, "The question must be sent as application/json.")
        headers = {name: value for name in _PASSED_ON if (value := call.header(name)) is not None}
        body = build_chat_body(call.body, policy=context.settings.policy)
        await answer_chat(context, PLAYGROUND, call, headers, body)

    return ask


def build_chat_body(raw: bytes, *, policy: str) -> bytes:
    """Return the chat request for what the page sent. Raises ApiError 400 on anything else than a conversation."""
    try:
        question = msgspec.json.decode(raw, type=Question)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"The question cannot be read: {error}") from None
    if not question.messages:
        raise bad_request("The question is empty.", param="messages")
    return msgspec.json.encode({"model": policy, "messages": question.messages, "stream": True})


def refuse_other_sites(header: Header) -> None:
    """Browsers say where a request comes from; programs that say nothing are no confused deputy. Raises ApiError."""
    if header(b"sec-fetch-site") not in (None, "same-origin"):
        raise forbidden("This address serves its own page only.")
