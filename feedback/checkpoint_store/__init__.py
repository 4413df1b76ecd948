"""Checkpoints behind any fsspec URL: content-addressed, uploaded atomically, verified by whoever fetches them."""

from feedback.checkpoint_store.collection import Collected, collect_blobs
from feedback.checkpoint_store.fetching import fetch_checkpoint, list_fetched, remove_fetched, verify_fetched
from feedback.checkpoint_store.store import CheckpointStore, Stored, open_store

__all__ = [
    "CheckpointStore",
    "Collected",
    "Stored",
    "collect_blobs",
    "fetch_checkpoint",
    "list_fetched",
    "open_store",
    "remove_fetched",
    "verify_fetched",
]
