"""`prefloop up`: engine, gateway and trainer until Ctrl-C, with a line for whatever happens to them."""

import asyncio
import time
from collections.abc import Iterable

from rich.console import Console

from feedback.secret_files import ADMIN_KEY, locate_secret
from prefloop.services import Layout
from prefloop.startup import (
    build_seed_policy,
    check_settings,
    require_free_ports,
    start_services,
    stop_on_signals,
    wait_until_ready,
)
from prefloop.supervisor import Supervisor


async def run_up(layout: Layout, console: Console, gateway: dict[str, str]) -> int:
    """Serve until Ctrl-C. Returns the exit status."""
    require_free_ports(layout)
    check_settings(layout, gateway)
    if not layout.model:
        build_seed_policy(layout.state_dir)
    stop = asyncio.Event()
    stop_on_signals(stop)
    supervisor = Supervisor()
    start_services(supervisor, layout, gateway)
    try:
        await wait_until_ready(layout, supervisor, console, stop)
        if not stop.is_set():
            print_addresses(console, layout)
            await print_events(supervisor, console, stop)
    finally:
        console.print("Stopping …")
        await supervisor.stop()
    return 0


def print_addresses(console: Console, layout: Layout) -> None:
    """Where people, operators and apps find it."""
    console.print(f"playground  {layout.gateway_url}/", highlight=False)
    console.print(f"console     {layout.gateway_url}/console", highlight=False)
    console.print(f"API         {layout.gateway_url}/v1", highlight=False)
    console.print(f"admin key   in {locate_secret(layout.state_dir, ADMIN_KEY)}", highlight=False)
    if layout.preset == "personal":
        console.print("personal    what you choose in the playground teaches the model: a round every 20 choices")
        console.print("            a trial is judged by your comparisons, not by users, and you approve it there")
    console.print("Ctrl-C stops everything. `prefloop status` says what it is doing.")


async def print_events(supervisor: Supervisor, console: Console, stop: asyncio.Event) -> None:
    """A line for every service that ends or starts again, until `stop`."""
    last_at = 0.0
    while not stop.is_set():
        for at, event in newer_than(supervisor.events, last_at):
            console.print(f"{time.strftime('%H:%M:%S', time.localtime(at))} [yellow]{event}[/yellow]", highlight=False)
            last_at = at
        try:
            await asyncio.wait_for(stop.wait(), 0.5)
        except TimeoutError:
            continue


def newer_than(events: Iterable[tuple[float, str]], at: float) -> list[tuple[float, str]]:
    """The events after a time, in seconds since the epoch."""
    return [event for event in list(events) if event[0] > at]
