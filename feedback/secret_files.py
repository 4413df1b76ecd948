"""Where secrets lie: files of mode 0600 in the state directory, which the gateway makes at its first start."""

from __future__ import annotations

from pathlib import Path

FOLDER = "secrets"
PEPPER = "pepper"
TOKEN_KEY = "token_key"
ADMIN_KEY = "admin_key"
TRAINER_TOKEN = "trainer_token"


def locate_secret(state_dir: Path, name: str) -> Path:
    """The file of a secret, which may not be there."""
    return state_dir / FOLDER / name


def read_admin_key(state_dir: Path) -> str:
    """The key that may do everything, "" before the gateway's first start."""
    path = locate_secret(state_dir, ADMIN_KEY)
    return path.read_text().strip() if path.exists() else ""
