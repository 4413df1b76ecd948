"""The gateway's four secrets: pepper, token keys, admin key and trainer token, files of mode 0600 in `<state_dir>/secrets`.

Made at the first start. Refuses files that others may read; a group may where the file is root's, as in a Secret that
Kubernetes mounts. `token_key` may hold several lines: the first signs, all verify, so that a key can be replaced without
breaking comparisons that are being shown. `trainer_token` is read by the trainer too, which takes commands from another
machine by it.
"""

import hashlib
import os
import secrets as random_secrets
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from feedback.secret_files import ADMIN_KEY, FOLDER, PEPPER, TOKEN_KEY, TRAINER_TOKEN
from gateway.access.clients import is_loopback
from gateway.errors import SecretsError

_MAX_REMEMBERED = 256  # characters of a user's name


@dataclass(frozen=True)
class Secrets:
    """`token_keys` maps key id to key, the signing one first; `is_new` says the admin key has never been shown."""

    pepper: bytes = field(repr=False)
    token_keys: dict[str, bytes] = field(repr=False)
    admin_key: str = field(repr=False)
    trainer_token: str = field(default="", repr=False)
    is_new: bool = False

    @property
    def token_key(self) -> bytes:
        """The key that signs."""
        return next(iter(self.token_keys.values()))

    @property
    def token_key_id(self) -> str:
        """The id of the key that signs."""
        return next(iter(self.token_keys))

    def hash_user(self, app: str, name: str) -> str:
        """The keyed hash that stands for an app's user; those seen last are remembered."""
        return (
            _remember_user(self.pepper, app, name)
            if len(name) <= _MAX_REMEMBERED
            else self.keyed_hash("user", app, name)
        )

    def keyed_hash(self, purpose: str, *parts: str) -> str:
        """Keyed BLAKE2b under the pepper, 32 hex digits; parts are length-delimited, so they cannot run together."""
        return _hash(self.pepper, purpose, *parts)


def _hash(pepper: bytes, *parts: str) -> str:
    message = "".join([f"{len(part)}:{part}" for part in parts])
    return hashlib.blake2b(message.encode("utf-8", "surrogatepass"), digest_size=16, key=pepper[:64]).hexdigest()


@lru_cache(maxsize=8192)
def _remember_user(pepper: bytes, app: str, name: str) -> str:
    return _hash(pepper, "user", app, name)


def load_secrets(state_dir: Path) -> Secrets:
    """Read the secrets, making those that do not exist. Raises SecretsError if a file is readable by others."""
    folder = state_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    is_new = not (folder / ADMIN_KEY).exists()
    pepper = _read_or_make(folder / PEPPER, random_secrets.token_hex(32))
    token_lines = _read_or_make(folder / TOKEN_KEY, random_secrets.token_hex(32)).split()
    admin_key = _read_or_make(
        folder / ADMIN_KEY, f"pl_{random_secrets.token_hex(6)}_{random_secrets.token_urlsafe(32)}"
    )
    trainer_token = _read_or_make(folder / TRAINER_TOKEN, random_secrets.token_hex(32))
    if not pepper or not token_lines or not admin_key or not trainer_token:
        raise SecretsError(f"a file in {folder} is empty")
    token_keys = {hashlib.sha256(line.encode()).hexdigest()[:8]: line.encode() for line in token_lines}
    return Secrets(pepper.encode(), token_keys, admin_key, trainer_token, is_new)


def check_listening(host: str, secrets_configured: bool) -> None:
    """Raises SecretsError if `host` is beyond loopback and nobody has said that secrets are configured."""
    if not is_loopback(host) and not secrets_configured:
        raise SecretsError(
            f"refusing to listen on {host}: set gateway.secrets_configured once pepper, token and admin key are yours"
        )


def _is_exposed(found: os.stat_result) -> bool:
    return bool(found.st_mode & (0o037 if found.st_uid == 0 else 0o077))


def _read_or_make(path: Path, value: str) -> str:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if _is_exposed(path.stat()):
            raise SecretsError(f"{path} may be read by others: chmod 600 it") from None
        return path.read_text().strip()
    except OSError as error:  # a Secret that is mounted read-only and lacks it
        raise SecretsError(f"{path} is missing and cannot be made: {error.strerror}") from None
    with os.fdopen(fd, "w") as file:
        file.write(value + "\n")
        file.flush()
        os.fsync(file.fileno())
    return value
