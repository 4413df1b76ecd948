"""What an operator can do, in one table: the API, the command line and the console have the same actions under the same names.

Each is read from its own source: the API's document, the commands, the scripts of the console's pages. What one of them lacks it lacks
for a reason that is written down.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from prefloop import checkpoints, keys, rounds
from prefloop.rollouts.commands import commands as rollouts

ROOT = Path(__file__).parents[1]
CONSOLE = ROOT / "gateway/web/console"
GROUPS = {"rollout": rollouts, "round": rounds.commands, "checkpoints": checkpoints.commands, "keys": keys.commands}
LOOKS = {  # commands that change nothing
    "rollout list", "rollout show", "rollout watch", "rollout replay", "round list", "round show", "round compare", "round lineage",
    "checkpoints list", "checkpoints show", "checkpoints compare", "keys list", "keys usage",
}  # fmt: skip

ON_FILES = {  # commands that work on keys and checkpoints where they lie, and ask nothing of a gateway
    "checkpoints collect", "checkpoints sign", "checkpoints sign-key", "checkpoints verify",
}  # fmt: skip


@dataclass(frozen=True)
class Action:
    """route: of the API, names in braces left out. command, console: "" where there is none, for the reason `why`."""

    route: str
    command: str = ""
    is_in_console: bool = True
    why: str = ""


ACTIONS = [
    Action("POST rollouts", "rollout start"),
    *(
        Action(f"POST rollouts/{{}}:{name}", f"rollout {name}")
        for name in ("approve", "pause", "resume", "skip", "promote", "abort", "rollback", "retry")
    ),
    Action("POST rollouts:rollback", "rollout rollback"),
    Action("POST rounds", "round run"),
    Action("DELETE checkpoints/{}", "checkpoints delete"),
    Action("POST keys", "keys create"),
    Action("PATCH keys/{}", "keys limit"),
    Action("PATCH keys/{}", "keys expire"),
    Action("POST keys/{}:rotate", "keys rotate"),
    Action("DELETE keys/{}", "keys revoke"),
    Action("POST checkpoints", is_in_console=False, why="what has trained a checkpoint registers it"),
    Action("POST engines", is_in_console=False, why="what has started an engine registers it"),
    Action("DELETE engines", is_in_console=False, why="what has started an engine withdraws it"),
    Action("POST demonstrations", is_in_console=False, why="experts' apps send them; files come by `feedback import`"),
]


def list_routes() -> set[str]:
    paths = json.loads((ROOT / "docs/openapi.json").read_text())["paths"]
    prefix = "/operator/v1/"
    return {
        f"{method.upper()} {re.sub('{[^}]*}', '{}', path.removeprefix(prefix))}"
        for path, methods in paths.items()
        if path.startswith(prefix)
        for method in methods
        if method != "get"
    }


def list_commands() -> set[str]:
    found = set()
    for group, commands in GROUPS.items():
        named: Any = typer.main.get_command(commands)
        found |= {f"{group} {name}" for name in named.commands}
    return found


def list_buttons() -> set[str]:
    """The actions on a rollout, which rollout.js sends under their names."""
    script = (CONSOLE / "rollout_actions.js").read_text()
    table = script[script.index("const ACTIONS = {") : script.index("\n};")]
    return set(re.findall(r"^  (\w+): \{", table, re.MULTILINE))


def list_sent() -> Iterator[str]:
    """What the console's scripts send, as routes."""
    for path in CONSOLE.glob("*.js"):
        for target, method in re.findall(r'send\((["`][^"`]*["`]), .*?"(POST|PATCH|DELETE)"', path.read_text()):
            yield f"{method} {re.sub(r'[$]{[^}]*}', '{}', target[1:-1])}"
    for name in list_buttons():
        yield f"POST rollouts/{{}}:{name}"
    if '"rollouts:rollback"' in (CONSOLE / "rollout.js").read_text():
        yield "POST rollouts:rollback"


def test_the_api_has_these_actions_and_no_others() -> None:
    assert list_routes() == {action.route for action in ACTIONS}


def test_the_command_line_has_these_actions_and_else_only_looks() -> None:
    assert list_commands() - LOOKS - ON_FILES == {action.command for action in ACTIONS if action.command}
    assert list_commands() >= LOOKS | ON_FILES


def test_the_console_has_these_actions_and_no_others() -> None:
    assert set(list_sent()) == {action.route for action in ACTIONS if action.is_in_console}


@pytest.mark.parametrize("name", sorted(list_buttons()))
def test_an_action_on_a_rollout_has_one_name_everywhere(name: str) -> None:
    [action] = [one for one in ACTIONS if one.route == f"POST rollouts/{{}}:{name}"]
    assert action.command == f"rollout {name}"


def test_a_rollout_of_stable_against_itself_and_a_round_from_the_base_are_asked_for_everywhere() -> None:
    schemas = json.loads((ROOT / "docs/openapi.json").read_text())["components"]["schemas"]
    assert "aa" in schemas["NewRollout"]["properties"] and "from_base" in schemas["NewRound"]["properties"]
    for group, name, option in (("rollout", "start", "--aa"), ("round", "run", "--from-base")):
        named: Any = typer.main.get_command(GROUPS[group])
        assert option in {each for parameter in named.commands[name].params for each in parameter.opts}
    assert "aa: true" in (CONSOLE / "rollout.js").read_text() and "from_base" in (CONSOLE / "learning.js").read_text()


def test_what_one_of_them_lacks_it_lacks_for_a_reason() -> None:
    assert all(bool(action.why) != (action.is_in_console and bool(action.command)) for action in ACTIONS)
