"""An HTTP engine that speaks as much of vLLM as the trainer's sampler needs, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FakeEngine:
    """Answers every prompt with `said` and a turn end. fail_on: paths that answer 500."""

    def __init__(self, said: list[int], turn_end: int) -> None:
        self.said, self.turn_end = said, turn_end
        self.loaded: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.unloaded: list[str] = []
        self.fail_on: set[str] = set()
        self.logprob = -0.5
        self.weights: list[bytes] = []
        self.in_flight = self.most_in_flight = 0
        self.url = ""
        self._lock = threading.Lock()
        self._slow = threading.Event()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path in self.fail_on:
            return 500, {"error": {"message": "out of order"}}
        if path == "/v1/models":
            return 200, {"data": [{"id": "c-000001-abc"}, *({"id": name} for name in self.loaded)]}
        if path == "/v1/load_lora_adapter":
            if body["lora_name"] in self.loaded:
                return 400, {"error": {"message": "it is loaded already"}}
            self.loaded[body["lora_name"]] = body["lora_path"]
            self.weights.append((Path(body["lora_path"]) / "adapter_model.safetensors").read_bytes())
            return 200, "Success"
        if path == "/v1/unload_lora_adapter":
            self.unloaded.append(body["lora_name"])
            return (200, "Success") if self.loaded.pop(body["lora_name"], None) else (404, {"error": {}})
        return self._complete(body)

    def _complete(self, body: Any) -> tuple[int, Any]:
        if body["model"] not in self.loaded:
            return 404, {"error": {"message": "no such model"}}
        with self._lock:
            self.asked.append(body)
            self.in_flight += body["n"]
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._slow.wait(0.02)
        with self._lock:
            self.in_flight -= body["n"]
        is_cut = len(self.said) >= body["max_tokens"]
        ids = self.said[: body["max_tokens"]] if is_cut else [*self.said, self.turn_end]
        choice = {
            "text": "", "token_ids": ids, "finish_reason": "length" if is_cut else "stop",
            "logprobs": {"token_logprobs": [self.logprob] * len(ids)},
        }  # fmt: skip
        return 200, {"choices": [{"index": i, **choice} for i in reversed(range(body["n"]))]}


@contextmanager
def run_fake_engine(engine: FakeEngine) -> Iterator[FakeEngine]:
    """Serve it on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._send(*engine.answer(self.path, body))

        def do_GET(self) -> None:
            self._send(*engine.answer(self.path, None))

        def _send(self, status: int, content: Any) -> None:
            sent = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    engine.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield engine
    finally:
        server.shutdown()
        server.server_close()
