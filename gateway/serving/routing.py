"""Who is asking, and which checkpoint answers: pure functions of the request, the key and the serving view.

A user keeps an arm while the canary's weight stands, and users of the canary stay there when it grows. A request
without a user is assigned by its conversation.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from gateway.access.keys import Identity
from gateway.access.secrets import Secrets
from gateway.engines.deployment import Arm, ServingView
from gateway.errors import not_found, unavailable
from gateway.rollout.pure.assignment import choose_arm
from gateway.serving.body import EngineRequest

Header = Callable[[bytes], str | None]  # a header's value by its lower-case name
Messages = Callable[[], list[dict[str, Any]]]


class Who:
    """Who is asking, as keyed hashes. `user`: of the app, if it named one, else empty.

    The conversation's is made only when something needs it.
    """

    __slots__ = ("_app", "_conversation", "_given", "_messages", "_secrets", "user")

    def __init__(self, secrets: Secrets, app: str, named: str, given: str, messages: Messages) -> None:
        self._secrets, self._app, self._given, self._messages = secrets, app, given, messages
        self.user = secrets.hash_user(app, named) if named else ""
        self._conversation: str | None = None

    @property
    def conversation(self) -> str:
        """The conversation the app named, else one made of the first words."""
        if self._conversation is None:
            words = (self._given,) if self._given else find_opening(self._messages())
            self._conversation = self._secrets.keyed_hash("conversation", self._app, self.user, *words)
        return self._conversation

    @property
    def named_conversation(self) -> str:
        """The conversation if the app named it, else empty: nothing is decoded for it."""
        return self.conversation if self._given else ""

    @property
    def unit(self) -> str:
        """What is assigned to an arm: the user, else the conversation."""
        return self.user or self.conversation


class Route(msgspec.Struct, frozen=True):
    """The arm and the checkpoint that answer a request; `alias` is what the client calls it."""

    arm: Arm
    checkpoint: str
    alias: str
    is_pinned: bool = False  # an operator asked for this checkpoint by name


def identify_user(request: EngineRequest, header: Header, app: str, secrets: Secrets) -> Who:
    """Who is asking, from headers, else the body's fields, else the conversation's first words."""
    named = read_header_name(header(b"x-prefloop-user"))
    named = named or read_name(request.safety_identifier) or read_name(request.user)
    given = read_header_name(header(b"x-prefloop-conversation"))
    return Who(secrets, app, named, given, request.read_messages)


def read_name(given: str | None) -> str:
    """What an app calls a person or a conversation, without the blanks around it; empty if it does not."""
    return "" if given is None else given.strip()


def read_header_name(value: str | None) -> str:
    """`read_name` of a header, which is UTF-8, else the latin-1 as which it was read."""
    if value is None or value.isascii():
        return read_name(value)
    try:
        return read_name(value.encode("latin-1").decode())
    except UnicodeError:
        return read_name(value)


def find_opening(messages: list[dict[str, Any]]) -> tuple[str, str]:
    """What a conversation is known by: its system prompt and its first question."""
    system = first_content(messages, "system") or first_content(messages, "developer")
    return system, first_content(messages, "user")


def first_content(messages: list[dict[str, Any]], role: str) -> str:
    """The content of the first message of a role, as JSON where it has parts."""
    for message in messages:
        if message.get("role") == role:
            content = message.get("content")
            return content if isinstance(content, str) else _encode_parts(content)
    return ""


def _encode_parts(content: Any) -> str:
    try:
        return msgspec.json.encode(content).decode()
    except RecursionError:  # it could just be read
        return ""


def choose_route(
    model: str, alias: str, who: Who, identity: Identity, view: ServingView, known: frozenset[str]
) -> Route:
    """The checkpoint for a request that asks for `model`. Raises ApiError 404 for an unknown one, 503 if none serves.

    `known`: the checkpoints that engines hold, which operators may ask for by id.
    """
    if model == alias:
        if view.stable is None:
            raise unavailable("No checkpoint is being served yet.", retry_after_s=5)
        if view.canary is not None and choose_arm(view.salt, who.unit, view.weight) == "canary":
            return Route("canary", view.canary, alias)
        return Route("stable", view.stable, alias)
    if identity.may("operator"):
        if model in known:
            return Route("canary" if model == view.canary else "stable", model, model, is_pinned=True)
        if view.stable is None:  # nobody knows yet what there will be
            raise unavailable("No checkpoint is being served yet.", retry_after_s=5)
    raise not_found(f"The model `{model}` does not exist.", code="model_not_found", param="model")
