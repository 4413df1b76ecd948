"""`prefloop feedback` over a real log and real databases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from feedback import events as feedback_events
from feedback import inbox
from feedback.choices import metadata as gateway_metadata
from feedback.choices import outbox, store_comparison
from feedback.database import create_tables, open_database, write_transaction
from feedback.events import PREFERRED, Choice, new_event
from feedback.log import NewRecord, open_log
from feedback.outbox import delete_rows, load_rows
from prefloop.cli import app
from prefloop.feedback.sources import read_time
from tests.feedback.reading import record_choice
from tests.feedback.samples import make_choice, make_comparison, make_signal
from tests.feedback.stores import consume_all, dump, make_new, opened_store

TOPIC = "prefloop.feedback"
runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Ten comparisons, eight choices of which one still waits, a signal, a choice of a later release, and poison."""
    folder = tmp_path / "state"
    gateway = open_database(f"sqlite:{folder / 'gateway.db'}")
    create_tables(gateway, gateway_metadata)
    with write_transaction(gateway) as connection:
        for number in range(10):
            app = "shop" if number < 3 else "tutor"
            comparison = make_comparison(f"cmp_{number}", app=app, created_at=1000.0, expires_at=1e10)
            store_comparison(connection, comparison)
            if number < 8:
                record_choice(connection, comparison.id, PREFERRED[number % 5], None, False, "api", 86_400.0 + number)
        rows = load_rows(connection, outbox, 100)
        delete_rows(connection, outbox, [row.id for row in rows[:-1]])
    gateway.dispose()
    log = open_log(f"sqlite:{folder / 'log.db'}")
    log.append(TOPIC, [row.record for row in rows[:-1]])
    log.append(TOPIC, [make_new(new_event(make_signal(), source="test", now=1.0, event_id="sig"))])
    future = new_event(make_choice(), source="test", now=1.0, event_id="future")
    log.append(TOPIC, [make_new(future, ce_type=b"prefloop.verdict.v1")])
    log.append(TOPIC, [NewRecord(key=b"k", value=b"\x1b[31m{", headers={})])
    log.close()
    return folder


def run(state: Path, *arguments: str, code: int = 0) -> Result:
    result = runner.invoke(app, ["feedback", *arguments, "--state-dir", str(state)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def run_json(state: Path, *arguments: str) -> list[Any]:
    return [json.loads(line) for line in run(state, *arguments, "--json").stdout.splitlines()]


def find_places(state: Path) -> dict[str, str]:
    return {
        letter["error"]: f"{letter['partition']}:{letter['offset']}"
        for letter in run_json(state, "dead-letters", "list", "--all")
    }


def test_tail_shows_one_readable_line_for_each_event(state: Path) -> None:
    lines = run(state, "tail", "--no-follow").stdout.splitlines()
    assert len(lines) == 10
    [choice] = [line for line in lines if "cmp_0" in line]
    assert "choice" in choice and "first" in choice and "shop" in choice and "Curaçao" in choice
    assert sum("thumb up" in line for line in lines) == sum("PoisonEvent" in line for line in lines) == 1
    assert "\x1b" not in "".join(lines)  # nobody's text drives the terminal
    assert len(run(state, "tail", "--no-follow", "-n", "3").stdout.splitlines()) == 3
    assert len(run(state, "tail", "--no-follow", "--from-offset", "1").stdout.splitlines()) == 10 - 4
    assert run(state, "tail", "--no-follow", "--from-time", "2100-01-01").stdout == ""
    assert len(run(state, "tail", "--no-follow", "--from-time", "1h").stdout.splitlines()) == 10


def test_tail_prints_json_with_whole_events_and_reasons(state: Path) -> None:
    lines = run_json(state, "tail", "--no-follow")
    events = [line["event"] for line in lines if "event" in line]
    ids = {event["data"]["comparison"]["id"] for event in events if event["type"] == "prefloop.choice.v1"}
    assert ids == {f"cmp_{number}" for number in range(7)}
    assert [event["key"] for event in events if event["type"] == "prefloop.signal.v1"] == ["chatcmpl-1"]
    assert {line["error"] for line in lines if "error" in line} == {"FutureVersion", "PoisonEvent"}


def test_tail_follows_until_ctrl_c_and_ends_without_a_word(state: Path) -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a background job ignores
    code += "from prefloop.cli import main; main()"
    command = [sys.executable, "-c", code, "feedback", "tail", "--json", "--state-dir", str(state)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as tail:
        assert tail.stdout and tail.stderr
        assert all(tail.stdout.readline() for _ in range(10))
        log = open_log(f"sqlite:{state / 'log.db'}")
        log.append(TOPIC, [make_new(new_event(make_signal("chatcmpl-new"), source="test", now=1.0))])
        log.close()
        assert json.loads(tail.stdout.readline())["event"]["data"]["completion_id"] == "chatcmpl-new"
        tail.send_signal(signal.SIGINT)
        try:
            assert tail.wait(10) == 0
        finally:
            tail.kill()
        assert tail.stderr.read() == ""


def test_stats_count_every_side_of_the_road(state: Path) -> None:
    [before] = run_json(state, "stats")
    assert before["trainer"] is None and before["lag"] == 10
    assert not (state / "trainer.db").exists()  # looking makes nothing
    run(state, "replay")
    [after] = run_json(state, "stats")
    gateway, trainer = after["gateway"], after["trainer"]
    assert (gateway["comparisons"], gateway["choices"], gateway["outbox"]) == (10, 8, 1)
    assert gateway["outbox_oldest_age_s"] > 86_400
    assert gateway["by_app"] == {"tutor": 5, "shop": 3}
    assert gateway["by_verdict"] == {"first": 2, "second": 2, "tie": 2, "both_bad": 1, "skip": 1}
    assert gateway["by_asked"] == {"explore": 8} and gateway["by_policy"] == {"default": 8}
    assert gateway["by_day"] == {"1970-01-02": 8}
    assert (trainer["preferences"], trainer["signals"], after["lag"]) == (7, 1, 0)
    assert trainer["dead_letters"] == {"FutureVersion": 1, "PoisonEvent": 1} and trainer["gaps"] == []
    assert sum(row["end"] for row in after["log"]) == 10
    [content] = [row for row in after["satisfaction"] if row["slice"] == "all"]
    assert (content["arm"], content["num_wins"], content["thumbs_up"]["num"]) == ("stable", 0, 1)  # nobody at random
    shown = run(state, "stats").stdout
    assert "asked at random" in shown and "100% (21% to 100%)" in shown
    assert "10 comparisons, 8 choices (80% of what was shown)" in shown and "2 dead letters" in shown


def test_stats_of_nothing_say_so(tmp_path: Path) -> None:
    assert run(tmp_path, "stats").stdout.count("yet") == 3
    assert list(tmp_path.iterdir()) == []


def test_stats_cannot_write(state: Path) -> None:
    from prefloop.feedback.sources import opened_to_read

    run(state, "replay")
    with opened_to_read(f"sqlite:{state / 'trainer.db'}", inbox.preferences) as connection:
        assert connection is not None
        with pytest.raises(Exception, match="readonly"):
            connection.execute(inbox.preferences.delete())


def test_replay_rebuilds_the_trainers_store_beside_the_old_one(state: Path) -> None:
    log = open_log(f"sqlite:{state / 'log.db'}")
    with opened_store(state / "trainer.db") as store:
        consume_all(log, store, TOPIC)
        original = dump(store)
    log.close()
    shown = run(state, "replay", "--into", f"sqlite:{state / 'new.db'}").stdout
    assert shown == "10 records read: 7 choices, 1 signals and 2 dead letters that the store did not have.\n"
    with opened_store(state / "new.db") as store:
        assert dump(store) == original
    assert run_json(state, "replay")[0]["num_preferences"] == 0  # the store that is there lacks nothing


def test_replay_refuses_a_store_that_is_in_use_unless_forced(state: Path) -> None:
    with opened_store(state / "trainer.db") as store, store.connect():
        code = "import sys; from prefloop.cli import main; main()"
        command = [sys.executable, "-c", code, "feedback", "replay", "--state-dir", str(state)]
        refused = subprocess.run(command, capture_output=True, text=True)
        assert refused.returncode == 1 and "stop the trainer first" in refused.stderr
        assert dump(store)["preferences"] == []
        assert subprocess.run([*command, "--force"], capture_output=True).returncode == 0
        assert len(dump(store)["preferences"]) == 7


def test_replay_from_the_middle_of_a_store_that_lies_before_it_is_refused(state: Path) -> None:
    run(state, "replay")
    with opened_store(state / "trainer.db") as store, write_transaction(store) as connection:
        connection.execute(inbox.offsets.update().values(next=1))
    result = run(state, "replay", "--from-offset", "2", code=1)
    assert "would skip" in result.stderr and "Traceback" not in result.output


def test_dead_letters_are_shown_and_discarded_with_a_reason(state: Path) -> None:
    run(state, "replay")
    places = find_places(state)
    listed = run(state, "dead-letters", "list").stdout
    assert all(place in listed for place in places.values())
    shown = run(state, "dead-letters", "show", places["PoisonEvent"]).stdout
    assert "ce_type is missing" in shown and r"\x1b[31m{" in shown and "\x1b" not in shown
    run(state, "dead-letters", "discard", places["PoisonEvent"], "--reason", "a test bench")
    assert f" {places['PoisonEvent']} " not in run(state, "dead-letters", "list").stdout
    assert "a test bench" in run(state, "dead-letters", "list", "--all").stdout
    assert run_json(state, "stats")[0]["trainer"]["discarded"] == 1


def test_dead_letters_are_stored_once_they_can_be_read(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(state, "replay")
    assert "0 stored, 2 still cannot be read" in run(state, "dead-letters", "retry").stdout
    monkeypatch.setitem(feedback_events.BODIES, "prefloop.verdict.v1", Choice)  # the later release
    assert run_json(state, "dead-letters", "retry") == [{"stored": 1, "unreadable": 1}]
    assert find_places(state).keys() == {"PoisonEvent"}
    assert run_json(state, "stats")[0]["trainer"]["preferences"] == 8


@pytest.mark.parametrize("end", ["jsonl", "parquet"])
def test_what_is_exported_here_is_imported_there(state: Path, tmp_path: Path, end: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for kind in ("choices", "signals"):
        path = str(tmp_path / f"{kind}.{end}")
        assert run(state, "export", path, "--kind", kind, "--all").stdout.startswith(str({"choices": 7}.get(kind, 1)))
        assert "can be imported" in run(other, "import", path, "--dry-run").stdout
        run(other, "import", path)
        run(other, "import", path)  # doubles nothing
    run(state, "replay")
    run(other, "replay")
    with opened_store(state / "trainer.db") as one, opened_store(other / "trainer.db") as two:
        assert dump(one, inbox.preferences, inbox.signals) == dump(two, inbox.preferences, inbox.signals)


def test_an_export_leaves_out_what_trl_cannot_use_and_other_policies(state: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert run(state, "export", str(path)).stdout.startswith("4 choices")
    assert {json.loads(line)["preferred"] for line in path.read_text().splitlines()} == {"first", "second"}
    assert "is there already" in run(state, "export", str(path), code=1).stderr
    assert run(state, "export", str(path), "--force", "--policy", "nobody").stdout.startswith("0 choices")


def test_a_foreign_dataset_comes_in_whole_or_not_at_all(state: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows = [{"prompt": f"{number}?", "chosen": "yes", "rejected": "no"} for number in range(3)]
    path.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "4?", "chosen": "yes"}])))
    result = run(state, "import", str(path), code=1)
    assert "line 4" in result.stdout and "nothing was imported" in result.stderr
    assert len(run(state, "tail", "--no-follow", "-n", "99").stdout.splitlines()) == 10
    assert "3 events appended" in run(state, "import", str(path), "--skip-bad", "--app", "books").stdout
    run(state, "import", str(path), "--skip-bad", "--app", "books")
    run(state, "replay")
    assert run_json(state, "stats")[0]["trainer"]["by_app"] == {"tutor": 4, "books": 3, "shop": 3}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tail"], "There is no log"),
        (["replay"], "There is no log"),
        (["export", "x.jsonl"], "There is no log"),
        (["export", "x.csv"], "ending"),
        (["import", "missing.jsonl"], "cannot be read"),
        (["dead-letters", "list"], "There is no trainer's database"),
        (["tail", "--from-time", "tomorrow"], "is no time"),
        (["tail", "--from-time", "1h", "--from-offset", "1"], "not both"),
        (["tail", "--log", "amqp://x"], "must begin with sqlite: or kafka://"),
        (["import", "missing.jsonl", "--log", "sqlite:no/such/log.db"], "cannot be read"),
        (["replay", "--into", "mysql://x"], "no URL of a database"),
        (["replay", "--into", "sqlite://"], "no URL of a database"),
        (["dead-letters", "discard", "0:1", "--reason", " "], "Say why"),
        (["stats", "--log", "kafka://"], "must begin with"),
    ],
)
def test_mistakes_are_named_in_one_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = run(tmp_path / "nowhere", *arguments, code=1)
    assert words in result.stderr.replace("\n", " ") and "Traceback" not in result.output
    assert not (tmp_path / "nowhere").exists()


def test_no_command_makes_a_directory(state: Path, tmp_path: Path) -> None:
    run(state, "export", str(tmp_path / "all.jsonl"))
    missing = tmp_path / "no" / "such"
    for arguments in (
        ["export", str(missing / "all.jsonl")],
        ["replay", "--into", f"sqlite:///{missing / 'other.db'}"],
        ["import", str(tmp_path / "all.jsonl"), "--log", f"sqlite:{missing / 'log.db'}"],
    ):
        refused = run(state, *arguments, code=1)
        assert f"There is no directory {missing}" in refused.stderr
    assert f"There is no directory {missing}" in run(missing, "import", str(tmp_path / "all.jsonl"), code=1).stderr
    assert not (tmp_path / "no").exists()


def test_help_offers_nothing_that_does_nothing() -> None:
    help_text = runner.invoke(app, ["feedback", "--help"]).output
    assert "feedback [OPTIONS] COMMAND" in help_text and "completion" not in help_text


@pytest.mark.parametrize("place", ["7", "a:b", "0:999"])
def test_places_that_are_none_are_named(state: Path, place: str) -> None:
    run(state, "replay")
    assert place in run(state, "dead-letters", "show", place, code=1).stderr


def test_times_are_absolute_or_so_long_ago() -> None:
    now = time.time()
    assert read_time("", now) is None
    assert read_time("90s", now) == now - 90 and read_time("1.5h", now) == now - 5400
    assert read_time("2026-01-31T12:00+00:00", now) == 1769860800.0


def test_settings_are_those_of_gateway_and_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from feedback.settings import SharedSettings
    from gateway.settings import GatewaySettings
    from prefloop.feedback.sources import Sources
    from trainer.settings import TrainerSettings

    for environment in ({}, {"GATEWAY__DATABASE_URL": "sqlite:g.db", "TRAINER__DATABASE_URL": "sqlite:t.db"}):
        for name, value in environment.items():
            monkeypatch.setenv(f"PREFLOOP_{name}", value)
        found, gateway, trainer = Sources(), GatewaySettings(), TrainerSettings()
        assert found.gateway_database == gateway.gateway_database
        assert found.trainer_database == trainer.trainer_database
        assert (found.log, found.topic) == (SharedSettings().log, SharedSettings().topic)
        assert (found.trainer.host, found.trainer.port) == (trainer.trainer.host, trainer.trainer.port)
