"""What the playground's chat box asks: under an identity of its own, on the same path as every app's requests.

No key enters the browser; only our own page may ask, up to a limit. Nobody's name is passed on, so nothing that is asked
here counts as evidence of a rollout, unless a setting names the one person who uses it; what is chosen trains nothing
unless a setting says so. What else that person may do here is in teaching.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.access.clients import find_client, is_loopback
from gateway.access.keys import PLAYGROUND_APP, Identity
from gateway.access.limits.allowance import KeyLimits
from gateway.api.request_body import decode_body
from gateway.errors import ApiError, bad_request, forbidden
from gateway.serving.dispatch import answer_chat
from gateway.serving.routing import Header

if TYPE_CHECKING:
    from gateway.http.call import Call, Handler
    from gateway.sections.serving import GatewaySection
    from gateway.serving.context import Context

PLAYGROUND_PATH = b"/playground/chat"
PLAYGROUND = Identity(key_id="playground", app=PLAYGROUND_APP, scopes=frozenset({"app"}), pairs=True)
_PASSED_ON = (b"x-prefloop-compare", b"x-prefloop-conversation")


class Question(msgspec.Struct):
    """What the playground may say: the conversation, nothing else of the chat API."""

    messages: list[dict[str, Any]]


_decoder = msgspec.json.Decoder(Question)


def has_playground(section: GatewaySection) -> bool:
    """Whether the playground is served: to anybody, or to this machine."""
    return is_loopback(section.host) if section.playground is None else section.playground


def build_playground_handler(context: Context) -> Handler:
    """The handler of PLAYGROUND_PATH."""
    section = context.settings.gateway
    limits = KeyLimits(requests_per_minute=section.playground_requests_per_minute)
    identity = replace(PLAYGROUND, limits=limits)

    async def ask(call: Call) -> None:
        refuse_other_sites(call.header)
        if section.playground is None and not is_local_call(call, section):
            raise forbidden("This playground answers this machine only: `gateway.playground` opens it.")
        refuse_other_types(call)
        passed_on = {name: value for name in _PASSED_ON if (value := call.header(name)) is not None}
        if section.playground_user:
            passed_on[b"x-prefloop-user"] = section.playground_user
        question = decode_body(call.body, _decoder.decode, "question")
        await answer_chat(
            context, identity, call, passed_on, build_chat_body(question.messages, context.settings.policy, section)
        )

    return ask


def build_chat_body(messages: list[dict[str, Any]], model: str, section: GatewaySection) -> bytes:
    """The chat request for a conversation that the page sent. Raises ApiError 400 for an empty one."""
    if not messages:
        raise bad_request("The question is empty.", param="messages")
    limits = {"temperature": section.playground_temperature, "max_tokens": section.playground_max_tokens}
    given = {name: value for name, value in limits.items() if value is not None}
    return msgspec.json.encode({"model": model, "messages": messages, "stream": True, **given})


def is_local_call(call: Call, section: GatewaySection) -> bool:
    """Whether a program on this machine asks, without a proxy between."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in call.headers.items()}
    return find_client(call.peer, "http", headers, section.trusted_proxies).is_local


def refuse_other_types(call: Call) -> None:
    """A page of another site cannot send JSON unasked. Raises ApiError 415."""
    if not (call.header(b"content-type") or "").startswith("application/json"):
        raise ApiError(415, "The question must be sent as application/json.")


def refuse_other_sites(header: Header) -> None:
    """Browsers say where a request comes from; programs that say nothing are no confused deputy. Raises ApiError."""
    if header(b"sec-fetch-site") not in (None, "same-origin"):
        raise forbidden("This address serves its own page only.")
