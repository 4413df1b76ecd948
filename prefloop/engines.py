"""`prefloop engines`: what engines there are, what they hold, and which whole models want one."""

from __future__ import annotations

import msgspec

from prefloop.gateway_client import GatewayClient, JsonOption, with_gateway
from prefloop.terminal import plain


class Engine(msgspec.Struct, frozen=True):
    """One engine as the gateway that was asked sees it. checkpoint: the whole model it holds; proven: what may serve.

    source: `settings`, `registered`, or the URL whose name was looked up.
    """

    url: str
    up: bool
    breaker: str
    is_hung: bool
    is_withdrawn: bool
    in_flight: int
    adapters: list[str]
    proven: list[str]
    checkpoint: str | None = None
    source: str = ""


class WholeModel(msgspec.Struct, frozen=True):
    """A checkpoint that needs an engine of its own."""

    checkpoint: str
    status: str
    path: str


class EngineList(msgspec.Struct, frozen=True):
    """What wants an engine, and what is there."""

    data: list[Engine]
    wanted: list[WholeModel] = []


@with_gateway
def show_engines(client: GatewayClient, as_json: JsonOption = False) -> None:
    """Show the engines, what each holds, and which whole models want one."""
    found = client.show("GET", "/operator/v1/engines", EngineList, as_json=as_json)
    if found is None:
        return
    for engine in found.data:
        found_by = f"  found by {engine.source}" if engine.source.startswith("dns+") else ""
        plain.print(engine.url + found_by, soft_wrap=True)
        plain.print(f"  {describe_state(engine)}, {engine.in_flight} in flight")
        if engine.checkpoint is not None:
            plain.print(f"  holds a whole model  {engine.checkpoint}", soft_wrap=True)
        for name in engine.adapters:
            plain.print(f"  holds  {name}{'' if name in engine.proven else '  (not proven)'}", soft_wrap=True)
    for model in found.wanted:
        served = any(engine.checkpoint == model.checkpoint for engine in found.data)
        plain.print(f"{model.checkpoint}  {model.status}: {'has its engine' if served else 'wants an engine'}")
        plain.print(f"  {model.path}", soft_wrap=True)
    if not (found.data or found.wanted):
        plain.print("There are no engines.")


def describe_state(engine: Engine) -> str:
    """`up`, or what is wrong."""
    if engine.is_withdrawn:
        return "withdrawn"
    if engine.is_hung:
        return "hangs"
    state = "up" if engine.up else "down"
    return state if engine.breaker == "closed" else f"{state}, its breaker is {engine.breaker}"
