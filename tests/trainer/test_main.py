"""What the trainer's process sets before torch is there."""

from __future__ import annotations

import os

import pytest

from trainer.process import KEPT_PRIMITIVES, limit_kept_primitives


def test_few_compiled_products_are_kept_unless_somebody_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bulk pass memory grew by 469 MB from pair 500 to 1,500 at oneDNN's default of 1,024, by 158 MB at 32."""
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    limit_kept_primitives()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == KEPT_PRIMITIVES == "32"
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    limit_kept_primitives()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
