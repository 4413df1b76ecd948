"""Who is told of a rollout's transitions, and how."""

import base64
import binascii
from typing import Literal, Self

from pydantic import BaseModel, Field, SecretStr, model_validator

from feedback.settings import HttpUrl

NoticeKind = Literal["webhook", "slack", "log"]
Phase = Literal[
    "Pending", "Progressing", "Paused", "WaitingPromotion", "Promoting", "Baking", "Healthy", "RollingBack", "Aborting", "Degraded"
]  # fmt: skip
SECRET_PREFIX = "whsec_"
_MIN_SECRET_BYTES = 24


class NoticeTarget(BaseModel):
    """One receiver of notices."""

    kind: NoticeKind = Field(description="`webhook` (signed), `slack` (an incoming webhook's JSON), or `log`.")
    url: HttpUrl = Field(default="", repr=False, description="Where it is sent; of Slack's, the URL is a secret too.")
    secret: SecretStr = Field(
        default=SecretStr(""),
        description="Of a webhook: `whsec_` and at least 24 random bytes in base64, which sign every notice.",
    )
    phases: list[Phase] | None = Field(
        default=None, description="Phases of which it hears; unset: those of `notices.phases`."
    )

    @model_validator(mode="after")
    def refuse_what_cannot_be_sent(self) -> Self:
        """Raises ValueError for a target without its address, or a webhook whose secret signs nothing."""
        if (self.kind == "log") == bool(self.url):
            raise ValueError("a log has no url" if self.url else f"a {self.kind} needs a url")
        if self.kind == "webhook":
            read_secret(self.secret.get_secret_value())
        return self


class NoticesSection(BaseModel):
    """Notices of a rollout's transitions: at least once each, in order, tried again until they are taken."""

    targets: list[NoticeTarget] = Field(
        default_factory=lambda: [NoticeTarget(kind="log")],
        description="Who is told: `[{kind, url, secret, phases}]`. A new one hears of what happens from then on.",
    )
    phases: list[Phase] = Field(
        default=["WaitingPromotion", "Aborting", "Degraded"],
        description="A transition into one of these is told.",
    )
    timeout_s: float = Field(default=10.0, gt=0, description="Longest wait for a receiver's answer.")
    max_backoff_s: float = Field(
        default=300.0, gt=0, description="Longest pause before a notice that was not taken is sent again."
    )
    give_up_s: float = Field(
        default=3 * 86_400.0,
        gt=0,
        description="A notice this old is dropped, logged and counted, and the next one sent.",
    )


def read_secret(text: str) -> bytes:
    """The bytes that sign. Raises ValueError, which does not repeat the secret."""
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if not text.startswith(SECRET_PREFIX) or len(secret) < _MIN_SECRET_BYTES:
        raise ValueError(f"the secret must be {SECRET_PREFIX} and at least {_MIN_SECRET_BYTES} bytes in base64")
    return secret
