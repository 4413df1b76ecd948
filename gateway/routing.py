"""Who is asking, and which checkpoint answers: pure functions of the request, the key and the serving view.

A user keeps an arm while the canary's weight stands, and users of the canary stay there when it grows. A request
without a user is assigned by its conversation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from gateway.body import ChatRequest
from gateway.deployment import ServingView
from gateway.errors import not_found, unavailable
from gateway.keys import Identity
from gateway.rollout.assignment import choose_arm
from gateway.secrets import Secrets

Arm = Literal["stable", "canary"]


@dataclass(frozen=True)
class Who:
    """Keyed hashes; `user` is empty if unknown."""

    user: str
    conversation: str

    @property
    def unit(self) -> str:
        """What is assigned to an arm: the user, else the conversation."""
        return self.user or self.conversation


@dataclass(frozen=True)
class Route:
    """The arm and the checkpoint that answer a request; `alias` is what the client calls it."""

    arm: Arm
    checkpoint: str
    alias: str
    is_pinned: bool = False  # an operator asked for this checkpoint by name


def identify_user(request: ChatRequest, headers: Mapping[str, str], app: str, secrets: Secrets) -> Who:
    """Who is asking, from headers, else the body's fields, else the conversation's first words."""
    named = headers.get("x-prefloop-user") or request.safety_identifier or request.user or ""
    user = secrets.keyed_hash("user", app, named) if named else ""
    given = headers.get("x-prefloop-conversation")
    if given:
        return Who(user, secrets.keyed_hash("conversation", app, user, given))
    system = first_content(request.messages, "system") or first_content(request.messages, "developer")
    opening = first_content(request.messages, "user")
    return Who(user, secrets.keyed_hash("conversation", app, user, system, opening))


def first_content(messages: list[dict[str, Any]], role: str) -> str:
    """The content of the first message of a role, as JSON where it has parts."""
    for message in messages:
        if message.get("role") == role:
            content = message.get("content")
            return content if isinstance(content, str) else msgspec.json.encode(content).decode()
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
    if identity.may("operator") and model in known:
        return Route("canary" if model == view.canary else "stable", model, model, is_pinned=True)
    raise not_found(f"The model `{model}` does not exist.", code="model_not_found", param="model")
