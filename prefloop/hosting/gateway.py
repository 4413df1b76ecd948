"""What a host asks the gateway and tells it: which whole models need an engine, which engines are there, and its own claim."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import msgspec

TIMEOUT_S = 10.0


class WholeModel(msgspec.Struct, frozen=True):
    """A checkpoint that needs an engine. path: its directory as the gateway's machine sees it."""

    checkpoint: str
    path: str
    digest: str = ""
    stored_as: str = ""


class KnownEngine(msgspec.Struct, frozen=True):
    """An engine as the gateway sees it. registered_at: epoch seconds; None where nobody registered it."""

    url: str
    checkpoint: str | None
    up: bool = False
    is_withdrawn: bool = False
    in_flight: int = 0
    registered_at: float | None = None


class View(msgspec.Struct, frozen=True):
    """The gateway's answer."""

    wanted: list[WholeModel]
    data: list[KnownEngine]

    def list_claims(self, checkpoint: str) -> list[KnownEngine]:
        """Who says to serve a model, the earliest first."""
        found = [each for each in self.data if each.checkpoint == checkpoint and not each.is_withdrawn]
        return sorted(found, key=lambda each: (each.registered_at or 0.0, each.url))


class GatewayAway(Exception):
    """The gateway did not say, or refused: the text is its own."""


class EngineDesk:
    """The gateway's routes for whoever runs engines. read_key is called every time: a key may be replaced. Close it with `aclose`."""

    def __init__(self, url: str, read_key: Callable[[], str]) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S)
        self._read_key = read_key

    async def look(self) -> View:
        """What is needed, and what is there. Raises GatewayAway."""
        return msgspec.json.decode(await self._call("GET", "/operator/v1/engines"), type=View)

    async def register(self, url: str, checkpoint: str) -> None:
        """Claim a model for an engine's address. Raises GatewayAway."""
        await self._call("POST", "/operator/v1/engines", {"url": url, "checkpoint": checkpoint})

    async def withdraw(self, url: str) -> None:
        """Nothing more goes to an address. Raises GatewayAway."""
        await self._call("DELETE", "/operator/v1/engines", params={"url": url})

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _call(
        self, method: str, path: str, body: dict[str, str] | None = None, params: dict[str, str] | None = None
    ) -> bytes:
        try:
            headers = {"authorization": f"Bearer {self._read_key()}"}
            answer = await self._client.request(method, path, json=body, params=params, headers=headers)
            answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            raise GatewayAway(f"{method} {path}: {error.response.status_code} {error.response.text[:300]}") from error
        except (httpx.HTTPError, OSError) as error:
            raise GatewayAway(f"{method} {path}: {error or type(error).__name__}") from error
        return answer.content
