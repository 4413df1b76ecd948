"""`prefloop feedback quarantine` on a trainer's database with three preferences, two of them in quarantine."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from feedback import inbox, quarantine
from feedback.database import write_transaction
from prefloop.cli import app
from tests.feedback.samples import make_choice, make_comparison, make_record
from tests.feedback.stores import opened_store

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    with opened_store(tmp_path / "trainer.db") as database, write_transaction(database) as connection:
        inbox.consume(connection, [make_record(n, make_choice(make_comparison(f"cmp-{n}"))) for n in range(3)])
        quarantine.add(connection, "event-2", "round", "NotFinite: the loss is nan", 2.0)
        quarantine.add(connection, "event-0", "reward", "UnusableRow: \x1b[31mno messages", 1.0)
    return tmp_path


def run(state: Path, *arguments: str, code: int = 0) -> Result:
    result = runner.invoke(app, ["feedback", "quarantine", *arguments, "--state-dir", str(state)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_the_list_says_what_failed_where_and_why(state: Path) -> None:
    shown = run(state, "list").stdout
    assert "event-0" in shown and "event-2" in shown and "event-1" not in shown
    assert "the loss is nan" in shown and "no messages" in shown and "\x1b[31m" not in shown
    first, second = (json.loads(line) for line in run(state, "list", "--json").stdout.splitlines())
    assert (first["event_id"], first["part"], first["quarantined_at"]) == ("event-0", "reward", 1.0)
    assert (second["comparison_id"], second["preference_id"], second["app"]) == ("cmp-2", 3, "app-1")


def test_retry_releases_those_named_or_all(state: Path) -> None:
    assert "1 released" in run(state, "retry", "event-2").stdout
    assert "event-2" not in run(state, "list").stdout
    assert json.loads(run(state, "retry", "--json").stdout) == {"released": 1}
    assert run(state, "list").stdout.strip() == "Nothing is in quarantine."


def test_an_event_that_is_not_there_is_named_and_nothing_is_released(state: Path) -> None:
    assert 'no event "event-1"' in run(state, "retry", "event-0", "event-1", code=1).stderr
    assert "event-0" in run(state, "list").stdout


def test_without_a_trainers_database_it_says_so(tmp_path: Path) -> None:
    assert "There is no trainer's database" in run(tmp_path, "list", code=1).stderr
