"""One receiver of notices: sends it one transition, and says what went wrong without saying a secret."""

import hashlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.notices.message import Transition, build_slack, build_webhook, describe, sign
from gateway.sections.notices import NoticesSection, NoticeTarget, read_secret

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger("gateway.notices")


class NotTaken(Exception):
    """A receiver did not take a notice; the message says why, and holds no secret."""


class Receiver:
    """A target of the settings. key: names its cursor, the same over restarts and a new secret; clock: epoch seconds."""

    def __init__(
        self, target: NoticeTarget, settings: NoticesSection, policy: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.kind = target.kind
        self.phases = frozenset(settings.phases if target.phases is None else target.phases)
        self.key = hashlib.sha256(f"{policy}\0{target.kind}\0{target.url}".encode()).hexdigest()
        self._url, self._clock = target.url, clock
        self._secret = read_secret(target.secret.get_secret_value()) if target.kind == "webhook" else b""

    @property
    def name(self) -> str:
        """For logs: the kind and the host, as a path may hold a secret."""
        return f"{self.kind} at {urlsplit(self._url).hostname}" if self._url else self.kind

    async def send(self, client: "httpx.AsyncClient", it: Transition) -> None:
        """Send it once. Raises NotTaken."""
        if self.kind == "log":
            logger.warning("%s", describe(it))
            return
        body = build_webhook(it) if self.kind == "webhook" else build_slack(it)
        headers = {"content-type": "application/json", "user-agent": "prefloop"}
        if self.kind == "webhook":
            headers |= sign(self._secret, it.id, int(self._clock()), body)
        try:
            async with client.stream("POST", self._url, content=body, headers=headers) as answer:
                status = answer.status_code  # what it says beside that is not read
        except Exception as error:  # a socket, TLS, or HTTP that is none: its words may repeat the URL
            raise NotTaken(type(error).__name__) from None
        if not 200 <= status < 300:
            raise NotTaken(f"it answered {status}")
