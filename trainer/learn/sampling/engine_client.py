"""One vLLM server over HTTP, as far as the trainer's sampling speaks to it: adapters, and completions by token ids.

Every failure is an EngineFailed that names the engine and what it said. Holds no state; any thread may use it.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from trainer.learn.sampling.sampler import EngineFailed

ADAPTER_TIMEOUT_S = 60.0


class Engine:
    """The server at a URL, with or without `/v1` at its end."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def list_models(self, timeout_s: float = ADAPTER_TIMEOUT_S) -> list[str]:
        """Names of all that it serves. Raises EngineFailed."""
        listed = self._call("/v1/models", None, timeout_s)
        try:
            return [str(model["id"]) for model in listed["data"]]
        except (KeyError, TypeError) as error:
            raise EngineFailed(f"{self.url} does not list its models: {error!r}") from error

    def load_adapter(self, name: str, path: Path) -> None:
        """Serve the adapter of a directory under a name. Raises EngineFailed."""
        self._call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)}, ADAPTER_TIMEOUT_S)

    def unload_adapter(self, name: str, timeout_s: float = ADAPTER_TIMEOUT_S) -> None:
        """Forget an adapter; requests under way finish. No error if it is not loaded. Raises EngineFailed."""
        try:
            self._call("/v1/unload_lora_adapter", {"lora_name": name}, timeout_s)
        except EngineFailed as error:
            if error.status != 404:
                raise

    def complete(self, body: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
        """The choices of one completion, by their index. Raises EngineFailed if there are others than asked for."""
        answered = self._call("/v1/completions", body, timeout_s)
        try:
            choices: list[dict[str, Any]] = sorted(answered["choices"], key=lambda choice: int(choice["index"]))
        except (KeyError, TypeError, ValueError) as error:
            raise EngineFailed(f"{self.url} gave no choices: {error!r}") from error
        if len(choices) != body["n"]:
            raise EngineFailed(f"{self.url} gave {len(choices)} answers, {body['n']} were asked for")
        return choices

    def _call(self, path: str, body: Any, timeout_s: float) -> Any:
        """What is answered, parsed if it is JSON; GET where there is no body."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, content, {"content-type": "application/json"})
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                answered = response.read()
        except urllib.error.HTTPError as error:
            said = error.read(300).decode("utf-8", "replace")
            raise EngineFailed(f"{self.url}{path} answered {error.code}: {said}", error.code) from error
        except (OSError, HTTPException) as error:
            raise EngineFailed(f"{self.url}{path}: {type(error).__name__}: {error}") from error
        try:
            return json.loads(answered)
        except ValueError:
            return answered.decode("utf-8", "replace")
