"""Answers what the rollout side refuses: 404 for what is not there, 409 for what cannot be done now."""

from collections.abc import Awaitable
from typing import TypeVar

from gateway.errors import ApiError, RefusedAction, not_found
from gateway.tables.serving import StaleController

_T = TypeVar("_T")


async def answer_conflicts(action: Awaitable[_T]) -> _T:
    """What the action gives. Raises ApiError 404 or 409."""
    try:
        return await action
    except LookupError as error:
        raise not_found(f"Not found: {error}.") from error
    except RefusedAction as error:
        raise ApiError(409, str(error), code="conflict") from error
    except StaleController as error:
        raise ApiError(409, "The rollout moved on at this moment: look again.", code="conflict") from error
