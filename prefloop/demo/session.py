"""One run of the demo: the seed policy, the services, the people, the screen, and the report at the end.

Everything it knows comes over HTTP and from the people's stats file. It never reads what the people like.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from feedback.secret_files import read_admin_key
from prefloop import startup
from prefloop.demo.options import DemoOptions
from prefloop.demo.report import RssSampler, build_report, read_start_time, write_report
from prefloop.demo.screen import Screen
from prefloop.demo.snapshot import Snapshot, get_json
from prefloop.machine import MachineSettings
from prefloop.services import Layout, log_path
from prefloop.supervisor import Service, Supervisor

COUNTDOWN_S = 10.0
NEVER = "1000000000"
REAL_MODEL_LEN = 1024  # of a model that is not the seed policy: prompts and answers are short here
DEFAULT_TASTE = "brief"  # of people who talk to such a model


class DemoFailed(startup.StartFailed):
    """The demo did not reach what was asked; the message says why."""


class Session:
    """One run. Owns the supervisor and the HTTP client; `run` returns the exit status."""

    def __init__(self, options: DemoOptions, console: Console) -> None:
        self.options, self.console = options, console
        self.started_at = read_start_time(os.environ)
        machine = MachineSettings()
        # Every demo is a new world, beside the seed policy that all of them share.
        self.layout = Layout(
            state_dir=options.state_dir / "demo",
            port=options.port,
            model=str(options.state_dir / "seed"),
            preset="demo-smollm2" if options.model else "demo",
            lora_rank=machine.lora_rank,
            gpu_share=machine.engine_gpu_share,
            has_scorer=machine.has_scorer,
            has_store=bool(machine.checkpoints_url),
        )
        self.tastes: dict[str, str] = {}  # world and taste, as the people name them
        self.supervisor = Supervisor()
        self.stop = asyncio.Event()
        self.now = Snapshot({}, {}, [], {})
        self.final: dict[str, Any] | None = None

    async def run(self) -> int:
        """Start everything, play until done, stop everything; return the exit status."""
        startup.require_free_ports(self.layout)
        startup.check_settings(self.layout, self._gateway_settings(), self._trainer_settings())
        self.check_tastes()
        self.console.print(
            f"[bold]prefloop demo[/bold]: world {self.tastes['world']}, taste {self.tastes['taste']}, "
            f"rounds by {self.options.algorithm.upper()}; "
            f"a short world, judged by the settings preset '{self.layout.preset}'."
        )
        self.prepare_model()
        shutil.rmtree(self.layout.state_dir, ignore_errors=True)
        self.layout.state_dir.mkdir(parents=True)
        with startup.run_back_ends(self.layout, self.options.log, self.options.database) as self.layout:
            return await self._run_services()

    def prepare_model(self) -> None:
        """Build the seed policy, or find the model that was asked for."""
        if not self.options.model:
            startup.build_seed_policy(self.options.state_dir)
            return
        model = startup.find_model(self.options.model, self.options.state_dir)
        length = startup.choose_max_model_len(model, 0) or REAL_MODEL_LEN
        self.layout = replace(self.layout, model=model, max_model_len=length)

    async def _run_services(self) -> int:
        startup.stop_on_signals(self.stop)
        memory = RssSampler().start()
        startup.start_services(self.supervisor, self.layout, self._gateway_settings(), self._trainer_settings())
        try:
            await startup.wait_until_ready(self.layout, self.supervisor, self.console, self.stop)
            async with httpx.AsyncClient(base_url=self.layout.gateway_url, timeout=10) as client:
                if not self.stop.is_set():
                    await self._play(client)
        finally:
            peak_mb = memory.stop()
            self.console.print("Stopping …")
            await self.supervisor.stop()
        return self._conclude(peak_mb)

    def _gateway_settings(self) -> dict[str, str]:
        countdown_s = 0.0 if self.options.auto_approve else COUNTDOWN_S
        return {
            "PREFLOOP_ROLLOUT__AUTO_APPROVE": "true",
            "PREFLOOP_ROLLOUT__APPROVE_COUNTDOWN_S": str(countdown_s),
        }

    def _trainer_settings(self) -> dict[str, str]:
        settings = {"PREFLOOP_TRAINER__SEED": str(self.options.seed), "PREFLOOP_TRAINER__ROUND": self.options.algorithm}
        if self.options.num_aa:
            # An A/A trial asks about the deployment: nothing may be learnt meanwhile.
            settings["PREFLOOP_TRAINER__ROUND_EVERY_PREFERENCES"] = NEVER
        return settings

    async def _play(self, client: httpx.AsyncClient) -> None:
        client.headers["Authorization"] = f"Bearer {read_admin_key(self.layout.state_dir)}"
        await self._refresh(client)
        seed_policy = self.now.gateway["stable"]["id"]
        created = await client.post("/operator/v1/keys", json={"name": "people", "scope": "app", "pairs": True})
        created.raise_for_status()
        self.supervisor.start(self._people_service(created.json()["key"]))
        examined: asyncio.Task[dict[str, Any]] | None = None
        with Screen(self.console) as screen:
            while not self.stop.is_set():
                await self._refresh(client)
                screen.show(self._status())
                if self.options.num_aa:
                    await self._keep_aa_running(client)
                elif examined is None and self.now.has_begun_a_round:
                    # Not before: until then people's choices are what everything waits for.
                    examined = asyncio.create_task(self._examine(seed_policy, None))
                elif self.final is None and examined is not None and (promoted := self.now.first_promoted):
                    await examined
                    self.final = await self._examine(seed_policy, promoted)
                    screen.show_final(self.final)
                if self._is_done():
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.stop.wait(), 0.5)
        await self._refresh(client)
        if examined is not None and not examined.done():
            examined.cancel()

    def check_tastes(self) -> None:
        """Raises DemoFailed, with the people's own words, if they cannot read what they like."""
        argv = [sys.executable, "-m", "prefloop.demo.people", "--check"]
        checked = subprocess.run([*argv, *self._world_arguments], capture_output=True, text=True)
        if checked.returncode:
            raise DemoFailed(checked.stderr.strip())
        self.tastes = json.loads(checked.stdout)
        needed = "assistant" if self.options.model else "capitals"
        if self.tastes["world"] != needed:
            raise DemoFailed(
                f"The taste {self.tastes['taste']} is of the world {self.tastes['world']}, but this model lives in"
                f" {needed}: {'leave --model out' if self.options.model else 'add --model smollm2'}, or choose another."
            )

    @property
    def _world_arguments(self) -> list[str]:
        if self.options.world:
            return ["--world", str(self.options.world)]
        taste = self.options.taste or (DEFAULT_TASTE if self.options.model else "")
        return ["--taste", taste] if taste else []

    def _people_service(self, api_key: str) -> Service:
        argv = [sys.executable, "-m", "prefloop.demo.people", "--base-url", self.layout.gateway_url]
        argv += ["--seed", str(self.options.seed), "--stats-file", str(self._stats_path), "--run", "demo"]
        argv += [*self._world_arguments, *(["--shuffle-choices"] if self.options.is_shuffled else [])]
        return Service("people", argv, log_path(self.layout, "people"), {"PREFLOOP_API_KEY": api_key})

    @property
    def _stats_path(self) -> Path:
        return self.layout.state_dir / "people.json"

    async def _examine(self, seed_policy: str, policy: str | None) -> dict[str, Any]:
        """Hold the final examination in a process of its own, the people's: only it knows what they like."""
        out = self.layout.state_dir / "examination.json"
        argv = [sys.executable, "-m", "prefloop.demo.people", "--base-url", self.layout.gateway_url]
        argv += ["--seed", str(self.options.seed), "--examine", str(out), "--seed-policy", seed_policy]
        argv += ["--stats-file", str(self.layout.state_dir / "examination-progress.json")]
        argv += ["--policy", policy] if policy else []
        argv += self._world_arguments
        key = read_admin_key(self.layout.state_dir)
        with log_path(self.layout, "examination").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *argv, env={**os.environ, "PREFLOOP_API_KEY": key}, stdout=log, stderr=log
            )
            try:
                returncode = await process.wait()
            except asyncio.CancelledError:
                process.terminate()
                await process.wait()
                raise
        if returncode:
            raise DemoFailed(f"The final examination failed; see {log_path(self.layout, 'examination')}.")
        return dict(json.loads(out.read_text())) if policy else {}

    async def _keep_aa_running(self, client: httpx.AsyncClient) -> None:
        started = sum(1 for view in self.now.rollouts if view["aa"])
        if self.now.active_rollout is None and started < self.options.num_aa and started == self.now.finished_aa:
            with suppress(httpx.TransportError):
                await client.post("/operator/v1/rollouts", json={"aa": True})

    def _is_done(self) -> bool:
        options = self.options
        if options.num_aa and self.now.finished_aa >= options.num_aa:
            return True
        if options.until_promotions and self.now.promotions >= options.until_promotions and self.final:
            return True
        if options.until_choices and self.now.people.get("acks", 0) >= options.until_choices:
            return True
        return bool(options.timeout_s) and time.time() - self.started_at > options.timeout_s

    async def _refresh(self, client: httpx.AsyncClient) -> None:
        self.now.gateway = await get_json(client, "/operator/v1/status") or self.now.gateway
        rollouts = await get_json(client, "/operator/v1/rollouts")
        self.now.rollouts = rollouts["data"] if rollouts else self.now.rollouts
        self.now.trainer = await get_json(client, self.layout.trainer_url + "/status") or self.now.trainer
        with suppress(OSError, ValueError):
            self.now.people = json.loads(self._stats_path.read_text())

    def _status(self) -> dict[str, Any]:
        url = self.layout.gateway_url
        return {
            "now": time.time(),
            "elapsed_s": time.time() - self.started_at,
            "preset": self.layout.preset,
            **self.tastes,
            "is_shuffled": self.options.is_shuffled,
            "algorithm": self.options.algorithm,
            "promotions": self.now.promotions,
            "addresses": {"playground": f"{url}/", "console": f"{url}/console"},
            "processes": [state.as_row() for state in self.supervisor.states.values()],
            "gateway": self.now.gateway,
            "trainer": self.now.trainer,
            "people": self.now.people,
            "final": self.final,
        }

    def _conclude(self, peak_mb: float) -> int:
        report = build_report(
            seed=self.options.seed,
            algorithm=self.options.algorithm,
            started_at=self.started_at,
            now=time.time(),
            people=self.now.people,
            gateway=self.now.gateway,
            trainer=self.now.trainer,
            rollouts=self.now.rollouts,
            final=self.final,
            rss_peak_mb=peak_mb,
        )
        if self.options.report:
            write_report(self.options.report, report)
            self.console.print(f"Report written to {self.options.report}", highlight=False)
        is_reached = not self.options.is_unattended or self._reached_target()
        if not is_reached:
            self.console.print("[red]Ended before what was asked.[/red]")
        return 0 if is_reached else 1

    def _reached_target(self) -> bool:
        options = self.options
        return (
            (not options.num_aa or self.now.finished_aa >= options.num_aa)
            and (not options.until_promotions or self.now.promotions >= options.until_promotions)
            and (not options.until_choices or self.now.people.get("acks", 0) >= options.until_choices)
        )


async def run_demo(options: DemoOptions, console: Console) -> int:
    """Run the demo; return the exit status."""
    return await Session(options, console).run()
