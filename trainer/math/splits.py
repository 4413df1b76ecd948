"""Which prompts are near-duplicates of each other, and which of them judge and are never learnt from. Pure.

A prompt is the set of its word triples: of the last user message, and the whole system message as one element more, so
that a long system message does not make an app's prompts alike. MinHash (Broder 1997) with 64 permutations estimates the
Jaccard similarity of two such sets; four bands of six minima find candidates (at .8: 70%, at .9: 95%, at .6: 17%), whose
whole signatures are then compared. Does not know where clusters are stored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from datasketch import MinHash

Split = Literal["train", "heldout", "auditor"]

HELDOUT_SHARE = 0.10  # of the clusters that arrive once there are MIN_CHOICES
AUDITOR_SHARE = 0.05
MIN_CHOICES = 500  # fewer are all learnt from: what they say is measured before it is learnt
MIN_SIMILARITY = 0.75
NUM_PERMUTATIONS = 64
NUM_BANDS, BAND_ROWS = 4, 6  # few, as each band of each new prompt is a row somewhere in an index
_SHINGLE_WORDS = 3
_WORDS = re.compile(r"\w+")
_EMPTY = MinHash(num_perm=NUM_PERMUTATIONS, seed=1)
_RANDOM = np.random.Generator(np.random.PCG64(1))  # the same numbers for ever: bands are stored
_FACTORS = _RANDOM.integers(2**63, size=BAND_ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_SHIFTS = _RANDOM.integers(2**63, size=(NUM_BANDS, 1), dtype=np.uint64)


def choose_split(cluster: int, num_choices: int, *, is_demonstration: bool = False) -> Split:
    """Where a new cluster belongs, by its number alone; to `train` before there are MIN_CHOICES.

    is_demonstration: whether the row that begins it has an ideal answer. Those are held out from the first one on: nothing
    else judges what was learnt from them.
    """
    unit = (hash_key(b"split %d" % cluster) + 2**63) / 2**64
    is_early = num_choices < MIN_CHOICES
    if unit < HELDOUT_SHARE and (is_demonstration or not is_early):
        return "heldout"
    return "auditor" if HELDOUT_SHARE <= unit < HELDOUT_SHARE + AUDITOR_SHARE and not is_early else "train"


def choose_stricter(one: Split, other: Split) -> Split:
    """The split of a row whose prompt says one and whose conversation says the other: what judges is not learnt from."""
    return other if one == "train" else one


def make_shingles(messages: Sequence[dict[str, Any]]) -> list[bytes]:
    """The elements of a prompt's set; never empty."""
    asked = [_read_text(each) for each in messages if each.get("role") == "user"] or [_read_text(messages[-1])]
    words = _WORDS.findall(asked[-1].lower()) or [asked[-1].strip()]
    num = max(1, len(words) - _SHINGLE_WORDS + 1)
    shingles = [" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(num)]
    shingles += ["system " + _read_text(each) for each in messages if each.get("role") in ("system", "developer")]
    return [shingle.encode(errors="surrogatepass") for shingle in shingles]


def sign_prompt(messages: Sequence[dict[str, Any]]) -> bytes:
    """The prompt's MinHash signature: NUM_PERMUTATIONS little-endian uint32."""
    if not messages:
        return _pack(_EMPTY)
    minhash = _EMPTY.copy()
    minhash.update_batch(make_shingles(messages))
    return _pack(minhash)


def list_bands(signature: bytes) -> list[int]:
    """Hashes of a signature's bands, as signed 64-bit integers; two near-duplicates have one in common, mostly.

    Multilinear in the band's minima, which are uniform already; the band's number shifts it.
    """
    minima = np.frombuffer(signature, "<u4").astype(np.uint64)[: NUM_BANDS * BAND_ROWS].reshape(NUM_BANDS, BAND_ROWS)
    return (minima * _FACTORS + _SHIFTS).sum(axis=1, dtype=np.uint64).astype(np.int64).tolist()  # type: ignore[no-any-return]


def are_similar(one: bytes, other: bytes) -> bool:
    """Whether two signatures are those of near-duplicates."""
    return estimate_similarity(one, other) >= MIN_SIMILARITY


def estimate_similarity(one: bytes, other: bytes) -> float:
    """The share of equal minima: an unbiased estimate of the Jaccard similarity, +- .06 at most."""
    return float(np.mean(np.frombuffer(one, "<u4") == np.frombuffer(other, "<u4")))


def number_prompt(prompt_key: str) -> int:
    """A prompt's number, and that of the cluster it begins: its key's first 64 bits, signed as databases store them."""
    return int(prompt_key[:16], 16) - 2**63


def hash_key(key: bytes) -> int:
    """A signed 64-bit integer."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big", signed=True)


def _pack(minhash: MinHash) -> bytes:
    return bytes(minhash.hashvalues.astype("<u4").tobytes())


def _read_text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
