"""Log-probabilities of answers under the reference, computed once and kept on disk.

Keyed by base, reference, dtype and the token ids of prompt and answer, so that a new reference, another base or another
rendering never meets old figures. Memory is that of keys and sums (12 bytes an answer) while `get` runs. Never forgets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from feedback.durable import replacing
from trainer.learn.hearing import Hear, ignore_share
from trainer.learn.isolation import NotFinite
from trainer.model.logprobs import score_answers

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone
    from trainer.text.transcript import EncodedAnswer

Keys = npt.NDArray[np.uint64]
Sums = npt.NDArray[np.float32]
BLOCK = 1024  # answers computed between two writes of all that is known: what a kill can cost
PART = 256  # of them computed at a time


class References:
    """A cache in a directory, one file for each reference."""

    def __init__(self, directory: Path, base_digest: str) -> None:
        self.directory, self._base_digest = directory, base_digest

    def get(
        self,
        backbone: Backbone,
        answers: Sequence[EncodedAnswer],
        adapter: str | None,
        reference_digest: str,
        hear: Hear = ignore_share,
    ) -> Tensor:
        """Summed log-probabilities, (answers,) float32 on the CPU. Raises NotFinite, after which nothing of it is kept.

        hear: told what share of those that are missing is there; what it raises passes through, and they are kept.
        reference_digest must change whenever the adapter's weights do; for the base (adapter None) any constant will do.
        """
        path = self._path(reference_digest, str(backbone.dtype))
        keys = np.array([digest_answer(answer) for answer in answers], dtype=np.uint64)
        known, sums = _read(path)
        _, firsts = np.unique(keys, return_index=True)
        missing = np.sort(firsts[~np.isin(keys[firsts], known)])  # a pair's answers stay together: they share a row
        for start in range(0, len(missing), BLOCK):
            chosen = missing[start : start + BLOCK]
            parts = []
            for place in range(0, len(chosen), PART):
                hear((start + place) / len(missing))
                part = [answers[i] for i in chosen[place : place + PART]]
                parts.append(score_answers(backbone, part, adapter)[0])
            scored = torch.cat(parts)
            if not torch.isfinite(scored).all():
                raise NotFinite("a reference log-probability is not finite")
            known, sums = np.concatenate([known, keys[chosen]]), np.concatenate([sums, scored.numpy()])
            order = np.argsort(known)
            known, sums = known[order], sums[order]
            _write(path, known, sums)
        return torch.from_numpy(sums[np.searchsorted(known, keys)])

    def _path(self, reference_digest: str, dtype: str) -> Path:
        named = "\n".join((self._base_digest, reference_digest, dtype))
        return self.directory / f"{hashlib.sha256(named.encode()).hexdigest()[:24]}.safetensors"


def digest_answer(answer: EncodedAnswer) -> int:
    """64 bits that stand for the token ids; where the prompt ends counts. A million answers collide with chance 3e-8."""
    ids = np.array([len(answer.prompt), *answer.prompt, *answer.answer], dtype="<i8")
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")


def _read(path: Path) -> tuple[Keys, Sums]:
    """Sorted keys and their sums; none if the file is not there or is damaged, since all of it can be computed again."""
    try:
        kept = load_file(path)
        return kept["keys"], kept["sums"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return np.zeros(0, np.uint64), np.zeros(0, np.float32)


def _write(path: Path, keys: Keys, sums: Sums) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as written:
        save_file({"keys": keys, "sums": sums}, written)
