"""A real Kafka 4 broker on this machine, for development and tests: one node, loopback only, no container.

Promises: the jars come once, by Maven and with the user's own Maven settings, into a cache; a broker that was killed
starts again on the same data and port. One node keeps one copy of a record: production wants three.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from prefloop.servers.children import choose_parent_guard, find_cache, is_open
from prefloop.servers.ports import find_port

POM = Path(__file__).with_name("kafka-pom.xml")
MIN_JAVA = 17
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
MAVEN = "dependency:copy-dependencies", "-DincludeScope=runtime"

LOG4J = """\
rootLogger.level = WARN
rootLogger.appenderRef.stdout.ref = STDOUT
appender.stdout.type = Console
appender.stdout.name = STDOUT
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = [%d] %p %m (%c)%n
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = INFO
"""

Say = Callable[[str], None]


class KafkaFailed(Exception):
    """The broker cannot run here; the text says why and what to do."""


def cache_dir() -> Path:
    """Where the jars lie: $PREFLOOP_CACHE_DIR/kafka, else ~/.cache/prefloop/kafka."""
    return find_cache("kafka")


def check_programs() -> str | None:
    """What is missing to run a broker, in words; None if nothing is."""
    if shutil.which("java") is None:
        return f"java is missing: install Java {MIN_JAVA} or newer (Debian: apt-get install openjdk-17-jre-headless)"
    seen = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', seen)
    if found is None or int(found[1]) < MIN_JAVA:
        return f"Java {MIN_JAVA} or newer is needed, `java -version` says: {seen.strip()[:120]}"
    if not list(cache_dir().glob("*/kafka_*.jar")) and shutil.which("mvn") is None:
        return "mvn is missing: install Maven (Debian: apt-get install maven); it fetches the broker once"
    return None


def install_kafka(say: Say = print) -> Path:
    """The folder of the broker's jars; has Maven fetch them the first time (45 MB). Raises KafkaFailed."""
    missing = check_programs()
    if missing:
        raise KafkaFailed(missing)
    version = str(re.findall(r"<version>([^<]+)</version>", POM.read_text())[1])  # the first is the pom's own
    folder = cache_dir() / version
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be fetching them right now
        if not folder.is_dir():
            say(f"== Fetching Kafka {version} by Maven into {folder} (45 MB, once)")
            _fetch_jars(folder)
            say("== Kafka is there")
    return folder


def _fetch_jars(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        shutil.copy(POM, Path(name) / "pom.xml")
        command = ["mvn", "-q", "-B", *MAVEN, f"-DoutputDirectory={name}/libs"]
        done = subprocess.run(command, cwd=name, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise KafkaFailed(f"Maven could not fetch Kafka (is its repository within reach?):\n{done.stdout[-2000:]}")
        (Path(name) / "libs").rename(folder)


class Broker:
    """One broker and controller in one process, with its data in `folder`.

    port 0 takes the one that the folder was made with, or a free one. properties: added to server.properties, or put in
    the place of what is there. format_arguments: for Kafka's storage tool, when the folder is new.
    """

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        *,
        properties: Mapping[str, str] | None = None,
        format_arguments: Sequence[str] = (),
        say: Say = print,
    ) -> None:
        self.folder = folder
        self._jars = install_kafka(say)
        self._process: subprocess.Popen[bytes] | None = None
        self._format_arguments = format_arguments
        folder.mkdir(parents=True, exist_ok=True)
        ports = _load_ports(folder / "server.properties")
        self.port = port or ports[0] or find_port()
        self._controller_port = ports[1] or find_port()
        values = {**self._default_properties(), **(properties or {})}
        (folder / "server.properties").write_text("".join(f"{key}={value}\n" for key, value in values.items()))
        (folder / "log4j2.properties").write_text(LOG4J)

    @property
    def url(self) -> str:
        """What PREFLOOP_LOG_URL takes."""
        return f"kafka://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running broker."""
        assert self._process is not None, "the broker does not run"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives; it may still be starting."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and return when it takes requests. Raises KafkaFailed with the end of its log."""
        assert not self.is_running, "the broker runs already"
        if not (self.folder / "data" / "meta.properties").exists():
            self._format()
        for port in (self.port, self._controller_port):
            if is_open(port):
                raise KafkaFailed(f"port {port} is taken: stop what listens there, or choose another --port")
        heap = os.environ.get("PREFLOOP_KAFKA_HEAP", "-Xmx256m -Xms128m").split()
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._java(*heap, "-XX:+UseSerialGC", main="kafka.Kafka", arguments=["server.properties"]),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: the broker is stopped in order
                preexec_fn=choose_parent_guard(),
            )
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop in order; by force after 30 s. Idempotent."""
        if self._process is None:
            return
        if self.is_running:
            self._process.send_signal(signal.SIGCONT)  # it may have been made to hang
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """SIGKILL: what a crash does to it. `start` recovers the data."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _default_properties(self) -> dict[str, str]:
        host, controller = "127.0.0.1", f"127.0.0.1:{self._controller_port}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "listeners": f"PLAINTEXT://{host}:{self.port},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{host}:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.bootstrap.servers": controller,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.folder.resolve() / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "broker.session.timeout.ms": "2000",  # one that was killed may register again after it
            "broker.heartbeat.interval.ms": "500",
        }

    def _format(self) -> None:
        tool = "kafka.tools.StorageTool"
        made = subprocess.run(self._java(main=tool, arguments=["random-uuid"]), capture_output=True, text=True)
        arguments = ["format", "--standalone", "-t", made.stdout.strip(), "-c", "server.properties"]
        command = self._java(main=tool, arguments=[*arguments, *self._format_arguments])
        done = subprocess.run(command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise KafkaFailed(f"Kafka could not prepare {self.folder}:\n{made.stderr[-1000:]}{done.stdout[-2000:]}")

    def _java(self, *options: str, main: str, arguments: Sequence[str]) -> list[str]:
        quick = ["-XX:TieredStopAtLevel=1", "-Dlog4j2.configurationFile=log4j2.properties"]
        return ["java", *options, *quick, "-cp", f"{self._jars}/*", main, *arguments]

    def _wait_until_ready(self) -> None:
        # The port opens when the broker takes requests, not before.
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_open(self.port):
            if not self.is_running or time.monotonic() > deadline:
                self.kill()
                tail = (self.folder / "broker.log").read_text(errors="replace")[-2000:]
                raise KafkaFailed(f"Kafka did not start on port {self.port}; {self.folder}/broker.log ends:\n{tail}")
            time.sleep(0.05)


@contextlib.contextmanager
def run_kafka(state_dir: Path, port: int = 0, *, say: Say = print) -> Iterator[Broker]:
    """A started broker with its data in `state_dir`, stopped at the end. Raises KafkaFailed."""
    broker = Broker(state_dir, port, say=say)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def _load_ports(path: Path) -> tuple[int, int]:
    """The broker's and the controller's port of an earlier run; 0 where there was none."""
    if not path.exists():
        return 0, 0
    text = path.read_text()
    found = [re.search(rf"\b{name}://127\.0\.0\.1:(\d+)", text) for name in ("PLAINTEXT", "CONTROLLER")]
    return tuple(int(match[1]) if match else 0 for match in found)  # type: ignore[return-value]


def main() -> None:
    """Run a broker in the foreground until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="make kafka", description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=Path("state/kafka"), help="where its data lies")
    parser.add_argument("--port", type=int, default=0, help="its port; 0 keeps the folder's, or takes a free one")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where the shell that started it has its jobs ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        print("== Starting Kafka", flush=True)
        with run_kafka(arguments.folder, arguments.port) as broker:
            print(f"Kafka runs on 127.0.0.1:{broker.port}, its data is in {broker.folder}. Ctrl-C stops it.")
            print(f"  export PREFLOOP_LOG_URL={broker.url}", flush=True)
            while broker.is_running:
                time.sleep(0.5)
            sys.exit(f"Kafka ended by itself: see {broker.folder}/broker.log")
    except KafkaFailed as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Kafka is stopped.")


if __name__ == "__main__":
    main()
