"""Regular expressions with a time limit: searched in a process of its own. Imports nothing else, so that it starts fast."""

from __future__ import annotations

import multiprocessing
import re
from multiprocessing.connection import Connection
from typing import Any

MAX_REGEX_TEXT = 20_000


class RegexWorker:
    """Searches in a process of its own, which is ended when a pattern takes too long: Python's cannot be interrupted."""

    def __init__(self, pattern: str, timeout_s: float) -> None:
        re.compile(pattern)  # raises re.error at once
        self._pattern, self._timeout_s = pattern, timeout_s
        self._process: Any = None
        self._end: Connection | None = None

    def search(self, text: str) -> float:
        """1 if the pattern is found. Raises TimeoutError."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._end is not None
        self._end.send(text[:MAX_REGEX_TEXT])
        if not self._end.poll(self._timeout_s):
            self.close()
            raise TimeoutError(f"the pattern takes more than {self._timeout_s:g} s")
        return float(self._end.recv())

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._end, other = context.Pipe()
        self._process = context.Process(target=_serve_regex, args=(self._pattern, other), daemon=True)
        self._process.start()
        other.close()
        if not self._end.poll(30):  # a start is no search: Python is imported in it
            self.close()
            raise TimeoutError("the process that searches did not start")
        self._end.recv()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._end = None


def _serve_regex(pattern: str, end: Connection) -> None:
    compiled = re.compile(pattern)
    end.send(True)
    while True:
        try:
            text = end.recv()
        except EOFError:
            return
        end.send(compiled.search(text) is not None)
