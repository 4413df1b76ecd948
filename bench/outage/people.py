"""People beside the load: a few pairs and choices a second, so that there is something for the log while it is down.

What they may get in an outage is part of the promise: a single answer instead of two, or 503 for a choice; never an error
for a question.
"""

from __future__ import annotations

import threading
import time
from collections import Counter

import httpx

_PAUSE_S = 0.05
_BODY = {"model": "default", "messages": [{"role": "user", "content": "How does a river bend?"}], "max_tokens": 8}


class People(threading.Thread):
    """One thread that asks and chooses until `stop`. counts: what came of it; failed: questions without an answer."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(name="people", daemon=True)
        self.counts: Counter[str] = Counter()
        self.failed = 0
        self._client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Return when the last question is answered."""
        self._stopping.set()
        self.join()
        self._client.close()

    def run(self) -> None:
        number = 0
        while not self._stopping.wait(_PAUSE_S):
            number += 1
            try:
                self._ask_and_choose(number)
            except httpx.HTTPError as error:
                self._note_failure(f"{type(error).__name__}: {error}")

    def _ask_and_choose(self, number: int) -> None:
        headers = {"x-prefloop-compare": "always", "x-prefloop-user": f"user-{number % 100}"}
        answer = self._client.post("/v1/chat/completions", json=_BODY, headers=headers)
        if answer.status_code != 200:
            self._note_failure(f"{answer.status_code} {answer.text[:200]}")
            return
        comparison = answer.json().get("comparison")
        self.counts["two answers" if comparison else "one answer instead of two"] += 1
        if comparison is None:
            return
        choice = {"preferred": "first", "token": comparison["token"]}
        chosen = self._client.post(f"/v1/comparisons/{comparison['id']}/choice", json=choice)
        self.counts[f"choice {chosen.status_code}"] += 1

    def _note_failure(self, what: str) -> None:
        self.failed += 1
        self.counts["failed"] += 1
        if self.failed <= 5:
            print(f"{time.strftime('%H:%M:%S')} a question failed: {what}", flush=True)
