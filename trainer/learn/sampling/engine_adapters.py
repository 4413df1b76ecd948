"""The trainer's adapters on the engines: pushed under a new name and path each time, and taken off again.

A name is written down only by being loaded: whatever is called `t-…` on an engine is the trainer's, and what no sampling
under way needs is unloaded, also after a kill and when an engine that was away is back. The engines must see the
trainer's files, and are never asked for the bare base (vLLM on CPU answers wrong where a batch mixes it with adapters):
that is an adapter whose B is zero.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from trainer.learn.sampling.engine_client import ADAPTER_TIMEOUT_S, Engine
from trainer.learn.sampling.sampler import EngineFailed
from trainer.model.adapters import TENSORS

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

log = logging.getLogger("trainer.learn.engine_sampler")

PREFIX = "t-"  # of the adapters' names: whatever is called so is the trainer's


class EngineAdapters:
    """What the trainer has on these engines. directory: where adapters are written, and the engines read them."""

    def __init__(
        self, backbone: Backbone, engines: Sequence[Engine], directory: Path, number: Callable[[], int]
    ) -> None:
        self._backbone, self._engines, self._directory, self._number = backbone, engines, directory, number
        self._needed: set[str] = set()
        self._unclean = list(engines)  # which may hold something that nobody needs: at the start, what a kill left
        self._lock = threading.Lock()  # of the two above

    @property
    def is_clean(self) -> bool:
        """Whether no engine is known to hold more than what is needed."""
        return not self._unclean

    def push(self, adapter: str | None) -> str:
        """Load the adapter as it stands on every engine; returns its name. None: the base.

        Raises EngineFailed, with nothing left behind that can be reached.
        """
        self.clear(ADAPTER_TIMEOUT_S)
        path, name = self._write(adapter)
        with self._lock:
            self._needed.add(name)
        try:
            for engine in self._engines:
                engine.load_adapter(name, path)
        except EngineFailed:
            self.drop(name)
            raise
        return name

    def drop(self, name: str) -> None:
        """Unload an adapter everywhere and delete its files. An engine that does not answer is cleared later."""
        with self._lock:
            self._needed.discard(name)
        for engine in self._engines:
            try:
                engine.unload_adapter(name)
            except EngineFailed as error:
                log.warning("%s stays loaded until the engine answers: %s", name, error)
                with self._lock:
                    self._unclean = [*[each for each in self._unclean if each is not engine], engine]
        shutil.rmtree(self._directory / name, ignore_errors=True)

    def clear(self, timeout_s: float) -> None:
        """Unload and delete what nobody needs, where there may be such. Raises EngineFailed for an engine that is away."""
        for engine in list(self._unclean):
            for name in engine.list_models(timeout_s):
                if name.startswith(PREFIX) and name not in self._needed:
                    log.info("unloading %s from %s: nobody needs it", name, engine.url)
                    engine.unload_adapter(name, timeout_s)
            with self._lock:
                self._unclean = [each for each in self._unclean if each is not engine]
        for path in self._directory.glob(f"{PREFIX}*"):
            if path.name not in self._needed:
                shutil.rmtree(path, ignore_errors=True)

    def _write(self, adapter: str | None) -> tuple[Path, str]:
        """Write the adapter's files; the base is written as an adapter with B = 0. Returns their folder and the name."""
        writing = self._directory / "writing"
        shutil.rmtree(writing, ignore_errors=True)
        self._backbone.adapters.save(adapter or "stable", writing)
        if adapter is None:
            state = load_file(writing / TENSORS)
            save_file({key: t * 0 if "lora_B" in key else t for key, t in state.items()}, writing / TENSORS)
        digest = hashlib.sha256((writing / TENSORS).read_bytes()).hexdigest()[:12]
        name = f"{PREFIX}{digest}-{self._number()}"
        path = self._directory / name
        writing.rename(path)
        return path.resolve(), name
