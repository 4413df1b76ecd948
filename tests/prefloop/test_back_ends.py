"""What `prefloop demo --log --database` starts is real, is told to every process, and ends with it."""

import os
import shutil
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from feedback.log import NewRecord, open_log
from prefloop.servers import kafka, postgres
from prefloop.services import Layout, gateway_service, trainer_service
from prefloop.startup import StartFailed, run_back_ends


def test_the_embedded_back_ends_start_nothing_and_name_nothing(tmp_path: Path):
    layout = Layout(tmp_path)
    with run_back_ends(layout, "sqlite", "sqlite") as running:
        assert running == layout
    urls = [name for name in gateway_service(layout).env if name.endswith("_URL")]
    assert urls == ["PREFLOOP_GATEWAY__TRAINER_URL"]


def test_a_broker_and_a_server_run_as_long_as_the_block_and_every_process_gets_their_addresses(tmp_path: Path):
    require_programs()
    before = set(psutil.Process().children())  # those of the whole session
    with run_back_ends(Layout(tmp_path), "kafka", "postgresql") as running:
        log = open_log(running.log_url)
        log.append("t", [NewRecord(key=b"k", value=b"v")])
        log.close()
        for url in (running.gateway_database, running.trainer_database):
            database = sa.create_engine(url)
            with database.connect() as connection:
                assert connection.execute(sa.text("SELECT 1")).scalar() == 1
            database.dispose()
        assert running.gateway_database != running.trainer_database
        for service in (gateway_service(running), trainer_service(running)):
            assert service.env["PREFLOOP_LOG_URL"] == running.log_url
            assert service.env["PREFLOOP_GATEWAY__DATABASE_URL"] == running.gateway_database
            assert service.env["PREFLOOP_TRAINER__DATABASE_URL"] == running.trainer_database
        servers = set(psutil.Process().children()) - before
        assert {child.name() for child in servers} == {"java", "postgres"}
    assert not [child for child in servers if child.is_running()]


def test_a_missing_program_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartFailed, match="java is missing"), run_back_ends(Layout(tmp_path), "kafka", "sqlite"):
        pass


def require_programs() -> None:
    """Skip where a program is missing; in CI that is a failure."""
    missing = kafka.check_programs()
    try:
        postgres.find_programs()
    except postgres.MissingPostgres as error:
        missing = missing or str(error)
    if missing and os.environ.get("CI") == "true":
        pytest.fail(missing)
    if missing or shutil.which("java") is None:
        pytest.skip(missing or "java is missing")
