"""Migrations: from nothing, from databases made before there were any, with rows in them, by many at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path

import msgspec
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from typer.testing import CliRunner

import feedback
import gateway.app  # noqa: F401  # declares the gateway's tables
import trainer.run.lease
import trainer.run.numbers
import trainer.run.publish.lineage
import trainer.run.reward.keeper  # noqa: F401
from feedback import inbox
from feedback.database import Store, create_tables, metadata, open_database, write_transaction
from feedback.errors import NewerSchema
from feedback.inbox import consume, count_signals
from feedback.schema import find_pending, migrate, version_table
from gateway.serving.recording.completion_store import metadata as completions_metadata
from prefloop.cli import app
from prefloop.servers.postgres import Postgres
from tests.databases import make_url
from tests.feedback.reading import load_preferences, load_signals
from tests.feedback.samples import make_choice, make_comparison, make_record, make_signal
from trainer.run.rounds import rounds

MODELS: dict[Store, sa.MetaData] = {
    "gateway": metadata,
    "trainer": inbox.metadata,
    "completions": completions_metadata,
}


@pytest.fixture
def empty(database_url: str) -> Iterator[sa.Engine]:
    engine = open_database(database_url)
    yield engine
    engine.dispose()


def list_differences(engine: sa.Engine, store: Store) -> list[object]:
    """What the models say and the database lacks, or the other way round."""
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": version_table(store), "compare_type": True}
        )
        return list(compare_metadata(context, MODELS[store]))


@pytest.mark.filterwarnings("ignore:.*expression-based")  # SQLite cannot reflect an index over an expression
@pytest.mark.parametrize("store", MODELS)
def test_migrations_make_what_the_models_say(empty: sa.Engine, store: Store) -> None:
    assert migrate(empty, store) == list_revisions(store)
    assert list_differences(empty, store) == []
    assert migrate(empty, store) == []


def list_revisions(store: Store) -> list[str]:
    folder = Path(feedback.__file__).parent / "migrations" / store
    return sorted(path.name.partition("_")[0] for path in folder.glob("0*.py"))


@pytest.mark.parametrize("store", MODELS)
def test_sqlite_never_gives_an_id_twice_where_the_models_forbid_it(tmp_path: Path, store: Store) -> None:
    migrated, made = (open_database(f"sqlite:{tmp_path / name}.db") for name in ("migrated", "made"))
    migrate(migrated, store)
    create_tables(made, MODELS[store])
    assert list_autoincrements(migrated) == list_autoincrements(made)
    if store == "trainer":
        assert {"preferences", "trainer_signals"} <= list_autoincrements(made)
    migrated.dispose()
    made.dispose()


def list_autoincrements(engine: sa.Engine) -> set[str]:
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%'")
        return {row.name for row in rows}


@pytest.mark.parametrize("first", ["gateway", "trainer"])
def test_gateway_and_trainer_share_one_database(empty: sa.Engine, first: Store) -> None:
    others: list[Store] = [store for store in MODELS if store != first]
    for store in (first, *others):
        migrate(empty, store)
    names = set(sa.inspect(empty).get_table_names())
    assert names >= {name for models in MODELS.values() for name in models.tables}
    assert sum(len(models.tables) for models in MODELS.values()) + len(MODELS) == len(names)
    for store in MODELS:
        assert find_pending(empty, store) == []


def test_a_trainers_database_from_before_revisions_keeps_its_rows(empty: sa.Engine) -> None:
    make_old_trainer(empty)
    with empty.begin() as connection:  # as the release before stored them
        connection.execute(OLD_SIGNALS.insert(), [old_signal(number) for number in (1, 2, 5)])
        for number, split in enumerate(("train", "heldout_user", "heldout_prompt"), 1):
            insert_old_preference(connection, number, split)
    assert find_pending(empty, "trainer") == list_revisions("trainer")
    migrate(empty, "trainer")
    with empty.begin() as connection:
        rows = load_preferences(connection)
        assert [row.choice.comparison.id for row in rows] == ["cmp-1", "cmp-2", "cmp-3"]
        assert [(row.split, row.cluster) for row in rows] == [("train", None), ("heldout", None), ("heldout", None)]
        assert [number for number, _ in load_signals(connection)] == [1, 2, 5]
        assert [signal.completion_id for _, signal in load_signals(connection)] == ["c1", "c2", "c5"]
        consume(connection, [make_record(0, make_signal("c6"), event_id="event-6")])
        assert [number for number, _ in load_signals(connection)] == [1, 2, 5, 6]
        consume(connection, [make_record(1, make_signal("c2"), event_id="event-2")])  # was stored before
        assert count_signals(connection) == 4
        assert len(load_preferences(connection)) == 3
    assert "signals" in sa.inspect(empty).get_table_names()  # until the release that contracts


def test_a_stopped_round_of_before_was_rejected_if_its_reason_is_the_gates(empty: sa.Engine) -> None:
    make_old_trainer(empty)
    with empty.begin() as connection:
        table = sa.Table("rounds", sa.MetaData(), autoload_with=connection)
        for number, reason in enumerate(("offline gate: facts fell", "failed: out of memory", "passed"), 1):
            values = {
                "number": number, "kind": "dpo", "attempts": 1, "started_at": 1.0, "reason": reason,
                "last_preference_id": 1, "trigger_choice_at": 1.0, "metrics": "{}",
            }  # fmt: skip
            connection.execute(table.insert().values(**values))
    migrate(empty, "trainer")
    with empty.connect() as connection:
        rejected = connection.execute(sa.select(rounds.c.was_rejected).order_by(rounds.c.number)).scalars()
        assert list(rejected) == [True, False, False]


def test_an_old_table_without_rows_does_not_stand_in_the_gateways_way(empty: sa.Engine) -> None:
    make_old_trainer(empty)
    migrate(empty, "trainer")
    migrate(empty, "gateway")
    assert "idempotency_key" in {column["name"] for column in sa.inspect(empty).get_columns("signals")}


def test_the_gateways_signals_are_not_taken_for_the_trainers(empty: sa.Engine) -> None:
    create_tables(empty, metadata)
    migrate(empty, "trainer")
    assert "idempotency_key" in {column["name"] for column in sa.inspect(empty).get_columns("signals")}


_SINCE_REVISION_5 = {
    "rollouts": ("waived", "pair", "num_tries"),
    "decisions": ("inputs",),
    "rollout_observations": ("latency_token_s", "length", "unseen"),
    "comparisons": ("tags", "differences", "screened"),
    "keys": ("name", "expires_at", "old_digest", "old_until"),
}


@pytest.mark.filterwarnings("ignore:.*expression-based")
@pytest.mark.parametrize("store", ["gateway", "completions"])
def test_a_database_from_before_revisions_is_adopted_and_completed(empty: sa.Engine, store: Store) -> None:
    create_tables(empty, MODELS[store])
    if store == "gateway":  # one so old that it lacks a table
        with empty.begin() as connection:
            connection.exec_driver_sql("DROP TABLE engines")
            connection.exec_driver_sql("ALTER TABLE comparisons DROP COLUMN finished_first")
            connection.exec_driver_sql("ALTER TABLE comparisons DROP COLUMN share")
            connection.exec_driver_sql("DROP TABLE key_limits")
            connection.exec_driver_sql("DROP TABLE failed_duels")
            connection.exec_driver_sql("DROP TABLE notice_cursors")
            connection.exec_driver_sql("DROP TABLE key_usage")
            connection.exec_driver_sql("DROP TABLE rollout_divergences")
            connection.exec_driver_sql("ALTER TABLE rollouts DROP COLUMN note")
            connection.exec_driver_sql("ALTER TABLE rollout_events DROP COLUMN note")
            connection.exec_driver_sql("ALTER TABLE rollout_observations DROP COLUMN answered")
            connection.exec_driver_sql("DROP INDEX ix_rollouts_pair")
            connection.exec_driver_sql("DROP INDEX comparisons_remembered")
            for table, columns in _SINCE_REVISION_5.items():
                for column in columns:
                    connection.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {column}")
            connection.exec_driver_sql("INSERT INTO leases VALUES ('default', 'gateway-1', 12.5)")
    migrate(empty, store)
    assert list_differences(empty, store) == []
    if store == "gateway":
        with empty.connect() as connection:
            assert connection.exec_driver_sql("SELECT holder FROM leases").scalar_one() == "gateway-1"


def test_reasons_that_operators_typed_become_notes(empty: sa.Engine) -> None:
    """Of the code "NoData" in the words of an operator nothing is left to steer by; the gateway's own codes stand."""
    migrate(empty, "gateway")
    names = "id, policy, checkpoint, stable, aa, phase, analysis, reason, step, step_started_at, weight, duel_share"
    rest = "salt, generation, created_at, phase_started_at, resume_phase, split_waived, decision_digest, settings"
    rows = [("r-1", "Paused", "NoData"), ("r-2", "Degraded", "Inconclusive"), ("r-3", "Paused", "NoData"),
            ("r-4", "Degraded", "Inconclusive"), ("r-5", "Healthy", "Promoted")]  # fmt: skip
    moves = [("r-1", "Paused", "key:1", "NoData"), ("r-2", "Aborting", "key:1", "Inconclusive"),
             ("r-2", "Degraded", "controller", "Inconclusive"), ("r-3", "Paused", "controller", "NoData"),
             ("r-4", "Aborting", "controller", "Inconclusive"), ("r-5", "Promoting", "key:1", "It is fine."),
             ("r-5", "Promoting", "key:1", "Approved")]  # fmt: skip
    with empty.begin() as connection:
        for name, phase, reason in rows:
            values = f"'{name}', 'p', 'c', 's', false, '{phase}', 'a', '{reason}', 0, 0, 0, 0, '', 1, 0, 0, '', false, '', ''"
            connection.exec_driver_sql(f"INSERT INTO rollouts ({names}, {rest}) VALUES ({values})")
        for name, phase, actor, reason in moves:
            columns = "rollout, at, from_phase, to_phase, actor, reason, generation"
            values = f"'{name}', 0, '', '{phase}', '{actor}', '{reason}', 1"
            connection.exec_driver_sql(f"INSERT INTO rollout_events ({columns}) VALUES ({values})")
        path = Path(feedback.__file__).parent / "migrations/gateway/0003_reason_codes_and_failed_duels.py"
        revision = run_path(str(path))
        with Operations.context(MigrationContext.configure(connection)):
            revision["_turn_typed_reasons_into_notes"]()
        found = connection.exec_driver_sql("SELECT id, reason, note FROM rollouts ORDER BY id").all()
        told = connection.exec_driver_sql("SELECT rollout, reason, note FROM rollout_events ORDER BY id").all()
    assert [tuple(row) for row in found] == [
        ("r-1", "Operator", "NoData"), ("r-2", "Operator", "Inconclusive"), ("r-3", "NoData", ""),
        ("r-4", "Inconclusive", ""), ("r-5", "Promoted", ""),
    ]  # fmt: skip
    assert [tuple(row) for row in told] == [
        ("r-1", "Operator", "NoData"), ("r-2", "Operator", "Inconclusive"), ("r-2", "Inconclusive", ""),
        ("r-3", "NoData", ""), ("r-4", "Inconclusive", ""), ("r-5", "Forced", "It is fine."), ("r-5", "Approved", ""),
    ]  # fmt: skip


def test_processes_that_start_at_once_migrate_once(database_url: str) -> None:
    applied: list[list[str]] = []

    def start() -> None:
        engine = open_database(database_url)
        barrier.wait()
        applied.append(migrate(engine, "gateway"))
        engine.dispose()

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(applied) == [[], [], [], list_revisions("gateway")]


def test_a_failing_revision_leaves_the_old_schema(empty: sa.Engine) -> None:
    make_old_trainer(empty)
    with empty.begin() as connection:
        connection.execute(OLD_SIGNALS.insert(), [old_signal(1)])
        connection.exec_driver_sql("CREATE TABLE in_the_way (id INTEGER)")
        connection.exec_driver_sql("CREATE INDEX ix_trainer_signals_user ON in_the_way (id)")  # fails after the copy
    with pytest.raises(sa.exc.DBAPIError):
        migrate(empty, "trainer")
    assert find_pending(empty, "trainer") == list_revisions("trainer")
    assert "trainer_signals" not in sa.inspect(empty).get_table_names()
    with empty.begin() as connection:
        connection.exec_driver_sql("DROP TABLE in_the_way")
    migrate(empty, "trainer")
    with empty.connect() as connection:
        assert count_signals(connection) == 1


def test_a_newer_schema_is_refused(empty: sa.Engine) -> None:
    migrate(empty, "trainer")
    with write_transaction(empty) as connection:
        connection.exec_driver_sql("UPDATE trainer_version SET version_num = '9999'")
    for look in (migrate, find_pending):
        with pytest.raises(NewerSchema, match="has schema 9999, this release knows them up to"):
            look(empty, "trainer")


def test_the_command_checks_and_migrates(tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFLOOP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PREFLOOP_GATEWAY__DATABASE_URL", make_url("postgresql", tmp_path, postgres))
    runner = CliRunner()
    before = runner.invoke(app, ["migrate", "--check"])
    all_of = {store: ", ".join(list_revisions(store)) for store in MODELS}
    missing = f"gateway: missing {all_of['gateway']}\ncompletions: missing {all_of['completions']}\n"
    assert (before.exit_code, before.output) == (1, missing)
    done = runner.invoke(app, ["migrate"])
    assert (done.exit_code, done.output) == (0, missing.replace("missing", "applied"))
    after = runner.invoke(app, ["migrate", "--check"])
    assert (after.exit_code, after.output) == (0, "gateway: up to date\ncompletions: up to date\n")
    assert not (tmp_path / "state").exists()  # the trainer's SQLite is left to its first start


def test_the_command_says_what_it_cannot_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFLOOP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PREFLOOP_GATEWAY__DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    result = CliRunner().invoke(app, ["migrate"])
    assert result.exit_code == 1
    assert "gateway:" in result.output and "refused" in result.output


_old = sa.MetaData()
OLD_SIGNALS = sa.Table(
    "signals",
    _old,
    *(
        sa.Column(column.name, column.type, primary_key=column.primary_key)
        for column in inbox.signals.columns
        if column.name != "cluster"
    ),
)


def make_old_trainer(engine: sa.Engine) -> None:
    """The trainer's tables as they were made before there were revisions: those of the first, and `signals`."""
    path = Path(feedback.__file__).parent / "migrations/trainer/0001_first.py"
    with engine.begin() as connection:
        with Operations.context(MigrationContext.configure(connection)):
            run_path(str(path))["upgrade"]()
        OLD_SIGNALS.create(connection)


def insert_old_preference(connection: sa.Connection, number: int, split: str) -> None:
    """As the release before stored it, without a cluster."""
    table = sa.Table("preferences", sa.MetaData(), autoload_with=connection)
    choice = make_choice(make_comparison(f"cmp-{number}"))
    values = {
        "event_id": f"event-{number}", "comparison_id": f"cmp-{number}", "policy": "default", "app": "app-1",
        "user": "user-1", "asked": "explore", "prompt_key": "k", "preferred": "first", "chosen_at": 1.0,
        "split": split, "used_as_new": 1, "used_as_replay": 0, "choice_json": msgspec.json.encode(choice),
    }  # fmt: skip
    connection.execute(table.insert().values(**values))


def old_signal(number: int) -> dict[str, object]:
    signal = make_signal(f"c{number}")
    return {
        "id": number, "event_id": f"event-{number}", "completion_id": signal.completion_id, "policy": signal.policy,
        "app": signal.app, "user": signal.user, "checkpoint": signal.checkpoint, "kind": signal.kind,
        "prompt_key": "", "split": "train", "created_at": signal.created_at,
        "signal_json": msgspec.json.encode(signal),
    }  # fmt: skip
