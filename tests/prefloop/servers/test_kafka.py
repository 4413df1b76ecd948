"""The broker for development and tests: started, killed, started again; and what `make kafka` says."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer

from feedback.log import NewRecord, open_log
from prefloop.servers.kafka import Broker, KafkaFailed, cache_dir, check_programs, install_kafka
from prefloop.servers.ports import find_port
from tests.broker import run_broker


def test_a_killed_broker_comes_back_on_the_same_port_with_its_data():
    with run_broker() as broker:
        url, pid = broker.url, broker.pid
        log = open_log(url)
        log.append("t", [NewRecord(key=b"k", value=b"kept")])
        log.close()
        broker.kill()
        assert not broker.is_running
        broker.start()
        assert broker.url == url and broker.pid != pid
        log = open_log(url)
        assert [r.value for p in log.partitions("t") for r in log.read("t", p, 0, 10, 0.0)] == [b"kept"]
        log.close()
        broker.stop()
        broker.stop()
        again = Broker(broker.folder)
        assert again.url == url


def test_topics_are_made_by_us_alone():
    with run_broker() as broker:
        servers = f"127.0.0.1:{broker.port}"
        producer = KafkaProducer(bootstrap_servers=servers, max_block_ms=1000)
        with pytest.raises(Exception, match=r"metadata|Unknown"):
            producer.send("nobody-made-it", b"x").get(5)
        producer.close()
        consumer = KafkaConsumer(bootstrap_servers=servers, allow_auto_create_topics=False)
        assert "nobody-made-it" not in consumer.topics()
        assert consumer.partitions_for_topic("nobody-made-it") == set()
        consumer.close()


def test_a_broker_that_cannot_start_says_why():
    with run_broker() as broker:
        with pytest.raises(KafkaFailed, match=f"port {broker.port} is taken"):
            Broker(broker.folder / "second", broker.port).start()
        wrong = {"socket.request.max.bytes": "no number"}
        with pytest.raises(KafkaFailed, match=r"socket\.request\.max\.bytes"):
            Broker(broker.folder / "third", find_port(), properties=wrong).start()
        broker.stop()
        broken = Broker(broker.folder, properties=wrong)
        with pytest.raises(KafkaFailed, match=r"did not start[\s\S]*socket\.request\.max\.bytes"):
            broken.start()


def test_missing_programs_are_named_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "openjdk" in (check_programs() or "")
    with pytest.raises(KafkaFailed, match="java is missing"):
        install_kafka()
    (tmp_path / "java").write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    (tmp_path / "java").chmod(0o755)
    assert "Java 17 or newer" in (check_programs() or "")
    (tmp_path / "java").write_text("#!/bin/sh\necho 'openjdk version \"21\"' >&2\n")
    monkeypatch.setenv("PREFLOOP_CACHE_DIR", str(tmp_path / "cache"))
    assert cache_dir() == tmp_path / "cache" / "kafka"
    assert "maven" in (check_programs() or "")


def test_make_kafka_prints_the_setting_and_stops_on_ctrl_c(tmp_path):
    missing = check_programs()
    if missing and os.environ.get("CI") != "true":
        pytest.skip(missing)
    command = [sys.executable, "-m", "prefloop.servers.kafka", "--folder", str(tmp_path / "kafka")]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines = iter(process.stdout.readline, "")
        found = next(match for line in lines if (match := re.search(r"PREFLOOP_LOG_URL=(kafka://\S+)", line)))
        log = open_log(found[1])
        log.append("t", [NewRecord(key=b"k", value=b"v")])
        log.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
        assert "stopped" in process.stdout.read()
