"""One server under measurement: its process group, and what CPU time and memory its whole process tree has used.

Promises that `stop` leaves no process behind, and that a bench that is killed takes its servers along.
"""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]

STOP_TIMEOUT_S = 15.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ServerFailed(Exception):
    """A server ended or did not answer in time; the message has the end of its log."""


class Server:
    """A running process that listens on `port` of 127.0.0.1."""

    def __init__(self, name: str, argv: Sequence[str], port: int, log_path: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.port = port
        self._log_path = log_path
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until(self, path: str, timeout_s: float) -> None:
        """Wait for GET `path` to answer 200. Raises ServerFailed."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + path, timeout=5).status_code == 200:
                    return
            time.sleep(0.1)
        raise ServerFailed(f"{self.name} did not become ready:\n{self._log_path.read_text(errors='replace')[-2000:]}")

    def cpu_s(self) -> float:
        """CPU seconds of the process and its living descendants, since they started."""
        return sum(_read_cpu_s(process.pid) for process in self._tree())

    def rss_mb(self) -> float:
        """Resident memory of the process and its descendants, MB (shared pages counted for each)."""
        return float(sum(process.memory_info().rss for process in self._tree())) / 1e6

    def connections(self) -> list[tuple[int, int]]:
        """Local and remote port of every TCP connection that the process and its descendants hold."""
        held = [each for process in self._tree() for each in process.net_connections("tcp") if each.raddr]
        return [(each.laddr.port, each.raddr.port) for each in held]

    def stop(self) -> None:
        """End the process group, by force after 15 s."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def kill(self) -> None:
        """kill -9 to the process group."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _tree(self) -> list[psutil.Process]:
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]


class Bystanders:
    """What processes that are not the bench's use of the machine, from construction on."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = list(servers)
        self._started = time.monotonic()
        self._other_s = self._read_other_s()

    def share(self) -> float:
        """Their part of all cores' time since construction, 0 to 1."""
        elapsed_s = (time.monotonic() - self._started) * (os.cpu_count() or 1)
        return max(0.0, (self._read_other_s() - self._other_s) / elapsed_s)

    def _read_other_s(self) -> float:
        times = psutil.cpu_times()
        loads = resource.getrusage(resource.RUSAGE_CHILDREN)  # the load generators that have ended
        own_s = time.process_time() + loads.ru_utime + loads.ru_stime + sum(server.cpu_s() for server in self._servers)
        return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice - times.steal) - own_s


def _read_cpu_s(pid: int) -> float:
    # /proc counts in hundredths of a second, too coarse for a few thousand events; this clock counts in nanoseconds.
    clock = ctypes.c_int()
    if _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        return 0.0  # it has ended
    return time.clock_gettime(clock.value)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
