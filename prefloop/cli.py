"""The `prefloop` command. Imports nothing heavy: what a command needs is imported when it runs.

What a user can get wrong ends in one red line on stderr, in every command. Exit statuses: 0 it was done; 1 it was not, or the
answer is no; 2 the arguments are wrong. --json prints one document on stdout, and nothing else there.
"""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from prefloop import bias, checkpoints, engines, keys, rounds
from prefloop.gateway_client import JsonOption, StateOption, find_state_dir
from prefloop.rollouts.commands import commands as rollout_commands
from prefloop.status import show_status
from prefloop.terminal import console, make_table, plain, print_json, speak_plainly


class _Commands(typer.core.TyperGroup):
    """The commands, of which `feedback` is loaded when it is asked for: the databases take a second to import."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted([*super().list_commands(ctx), "feedback"])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name != "feedback":
            return super().get_command(ctx, cmd_name)
        from prefloop.feedback.commands import commands

        found = typer.main.get_command(commands)
        found.name = cmd_name
        return found

    def invoke(self, ctx: Any) -> Any:
        with speak_plainly():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="prefloop: a model-serving gateway that keeps learning from the people it serves.\n\n"
    "Exit status: 0 it was done, 1 it was not or the answer is no, 2 the arguments are wrong.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(keys.commands, name="keys")
app.add_typer(rollout_commands, name="rollout")
app.add_typer(rounds.commands, name="round")
app.add_typer(checkpoints.commands, name="checkpoints")
app.command("engines")(engines.show_engines)
app.command("bias")(bias.show_bias)
app.command("status")(show_status)


def check_address(url: str) -> str:
    """Raises typer.BadParameter for what no engine could answer at."""
    if url and not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{url} is no address: write http://HOST:PORT")
    return url.rstrip("/")


def check_report(path: Path | None) -> Path | None:
    """Raises typer.BadParameter for a file that could not be written in the end."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{path} is a directory, or in one that is not there")
    return path


PortOption = Annotated[
    int,
    typer.Option(
        "--port", min=1, max=65531, help="The gateway's port; engine, trainer, scorer and sync take the next ones."
    ),
]
EngineOption = Annotated[str, typer.Option(callback=check_address, help="Attach to a vLLM that runs at this URL.")]


@app.command("up")
def up(
    model: Annotated[
        str,
        typer.Option(
            help="A directory, a hub id, or smollm2: a real model of 135M parameters.",
            show_default="as prefloop.toml says, else the seed policy",
        ),
    ] = "",
    preset: Annotated[
        Literal["default", "demo", "demo-smollm2", "personal"] | None,
        typer.Option(
            help="Set of defaults; personal: one person teaches the model in the playground.",
            show_default="as prefloop.toml says",
        ),
    ] = None,
    engine: EngineOption = "",
    auto_approve: Annotated[bool, typer.Option("--auto-approve", help="Promote without an operator.")] = False,
    max_model_len: Annotated[int, typer.Option(min=0, help="The engine's context length; 0 lets vLLM choose.")] = 0,
    engine_arg: Annotated[list[str] | None, typer.Option(help="A further argument for vLLM; may be repeated.")] = None,
    state_dir: StateOption = None,
    port: PortOption = 8800,
) -> None:
    """Serve a model, ask, learn, canary and promote, until Ctrl-C."""
    from prefloop.machine import MachineSettings
    from prefloop.services import Layout
    from prefloop.startup import choose_max_model_len, find_model
    from prefloop.up import run_up

    settings = MachineSettings()
    state_dir = (state_dir or settings.state_dir).resolve()
    model = find_model(model or settings.base_model, state_dir)
    layout = Layout(
        state_dir=state_dir,
        port=port,
        model=model,
        engine_url=engine,
        preset=preset or settings.preset,
        max_model_len=choose_max_model_len(model, max_model_len),
        engine_args=engine_arg or (),
        lora_rank=settings.lora_rank,
        gpu_share=settings.engine_gpu_share,
        has_scorer=settings.has_scorer,
        has_store=bool(settings.checkpoints_url),
    )
    gateway = {"PREFLOOP_ROLLOUT__AUTO_APPROVE": "true"} if auto_approve else {}
    run(run_up(layout, console, gateway))


@app.command("demo")
def demo(
    until_promotions: Annotated[int, typer.Option(min=0, help="Exit after so many promotions; 0 goes on.")] = 0,
    until_choices: Annotated[int, typer.Option(min=0, help="Exit after so many acknowledged choices; 0 goes on.")] = 0,
    aa: Annotated[int, typer.Option("--aa", min=0, help="Run so many A/A rollouts in a row instead, then exit.")] = 0,
    auto_approve: Annotated[bool, typer.Option("--auto-approve", help="Approve without the countdown.")] = False,
    seed: Annotated[int, typer.Option(help="Seeds the people and the trainer.")] = 0,
    report: Annotated[
        Path | None, typer.Option(callback=check_report, help="Write the figures here as one JSON object.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="smollm2 (a real model of 135M parameters), or an instruct model's directory or hub id.",
            show_default="the seed policy",
        ),
    ] = "",
    taste: Annotated[str, typer.Option(help="A shipped taste, such as brief or warm-lists with a real model.")] = "",
    world: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A TOML file with other tastes.")
    ] = None,
    shuffle_choices: Annotated[
        bool, typer.Option("--shuffle-choices", help="Mirror every other choice: nothing can be learnt.")
    ] = False,
    algorithm: Annotated[
        Literal["dpo", "ppo", "sft"],
        typer.Option(help="How rounds learn; sft needs demonstrations, which nobody gives."),
    ] = "dpo",
    timeout_s: Annotated[float, typer.Option(min=0, help="Give up after so many seconds; 0 never.")] = 0,
    log: Annotated[
        Literal["sqlite", "kafka"], typer.Option(help="What carries choices; kafka starts a real broker (Java).")
    ] = "sqlite",
    database: Annotated[
        Literal["sqlite", "postgresql"],
        typer.Option(help="Where gateway and trainer keep rows; postgresql starts a real server."),
    ] = "sqlite",
    state_dir: StateOption = None,
    port: PortOption = 8800,
) -> None:
    """Watch a policy become better because simulated people choose. Keeps running until Ctrl-C."""
    from prefloop.demo.options import DemoOptions
    from prefloop.demo.session import run_demo

    options = DemoOptions(
        until_promotions=until_promotions,
        until_choices=until_choices,
        num_aa=aa,
        auto_approve=auto_approve,
        seed=seed,
        report=report,
        model=model,
        taste=taste,
        world=world.resolve() if world else None,
        is_shuffled=shuffle_choices,
        algorithm=algorithm,
        timeout_s=timeout_s,
        state_dir=find_state_dir(state_dir).resolve(),
        port=port,
        log=log,
        database=database,
    )
    run(run_demo(options, console))


@app.command("doctor")
def doctor(
    engine: Annotated[
        str, typer.Option(callback=check_address, help="Check the engine at this URL instead of the machine.")
    ] = "",
    as_json: JsonOption = False,
    state_dir: StateOption = None,
) -> None:
    """Say what is missing and how to get it."""
    from prefloop.doctor import diagnose_engine, diagnose_machine

    found = diagnose_engine(engine, find_state_dir(state_dir)) if engine else diagnose_machine()
    findings = list(found)
    if as_json:
        print_json({"data": findings})
    else:
        table = make_table("check", "", "seen", "what to do")
        for finding in findings:
            mark = Text("ok", "green") if finding.is_ok else Text("missing", "red")
            table.add_row(finding.name, mark, finding.seen, "" if finding.is_ok else finding.remedy)
        plain.print(table)
    raise typer.Exit(0 if all(finding.is_ok for finding in findings) else 1)


@app.command("migrate")
def migrate(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit 1 if something is missing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the databases to this release's schema, as gateway and trainer do when they start."""
    from prefloop.migrate import migrate_databases

    revisions = {}
    for store, found in migrate_databases(is_check=check):
        revisions[store] = found
        if not as_json:
            said = f"{'missing' if check else 'applied'} {', '.join(found)}" if found else "up to date"
            plain.print(f"{store}: {said}", soft_wrap=True)
    if as_json:
        print_json({"missing" if check else "applied": revisions})
    raise typer.Exit(1 if check and any(revisions.values()) else 0)


@app.command("sync")
def sync() -> None:
    """Fetch from the checkpoint store what may serve, beside an engine, until it is stopped: docs/checkpoints.md."""
    from prefloop.sync.process import run_sync

    raise typer.Exit(run_sync())


@app.command("engine-host")
def engine_host() -> None:
    """Run an engine for one whole model at a time, beside other hosts, until it is stopped: docs/training-at-scale.md."""
    from prefloop.hosting.process import run_engine_host

    raise typer.Exit(run_engine_host())


def run(main: Coroutine[Any, Any, int]) -> None:
    """Run to its end, and leave with its status."""
    raise typer.Exit(asyncio.run(main))


def main() -> None:
    """Run the command that was typed."""
    app()


if __name__ == "__main__":
    main()
