"""Comparison tokens, secrets and keys."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from gateway.access.keys import key_id_of
from gateway.access.secrets import check_listening, load_secrets
from gateway.access.tokens import ComparisonToken, read_token, sign_token
from gateway.errors import SecretsError

CLAIMS = ComparisonToken("cmp_1", "app", "user", ("a-0", "a-1"), ("d0", "d1"), 1700)


def test_a_token_says_what_was_signed_and_no_byte_may_change(tmp_path: Path) -> None:
    secrets = load_secrets(tmp_path)
    token = sign_token(CLAIMS, secrets)
    assert read_token(token, secrets) == CLAIMS
    for i in range(len(token)):
        other = token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :]
        # the last character of 32 bytes in base64 carries bits that decode to nothing
        assert read_token(other, secrets) in ((None,) if i < len(token) - 1 else (None, CLAIMS))


@pytest.mark.parametrize(
    "token", ["", ".", "...", "ct1.x.y.z", "ct1..e30.", "\u00e4.\u00e4.\u00e4.\u00e4", "a" * 10_000]
)
def test_nonsense_is_no_token(tmp_path: Path, token: str) -> None:
    assert read_token(token, load_secrets(tmp_path)) is None


def test_a_secret_that_is_missing_where_none_can_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_secrets(tmp_path)
    missing = tmp_path / "secrets" / "trainer_token"
    missing.unlink()
    really_open = os.open

    def open_read_only(path: Any, *rest: Any, **named: Any) -> int:  # as a Secret that is mounted
        if path == missing:
            raise OSError(errno.EROFS, "Read-only file system")
        return really_open(path, *rest, **named)

    monkeypatch.setattr(os, "open", open_read_only)
    with pytest.raises(SecretsError, match="trainer_token is missing and cannot be made: Read-only file system"):
        load_secrets(tmp_path)


def test_a_replaced_key_still_verifies_and_a_foreign_one_does_not(tmp_path: Path) -> None:
    old = load_secrets(tmp_path / "ours")
    token = sign_token(CLAIMS, old)
    path = tmp_path / "ours" / "secrets" / "token_key"
    path.write_text("ab" * 32 + "\n" + path.read_text())
    new = load_secrets(tmp_path / "ours")
    assert new.token_key_id != old.token_key_id
    assert read_token(token, new) == CLAIMS
    assert read_token(token, load_secrets(tmp_path / "theirs")) is None


def test_secrets_are_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    first = load_secrets(tmp_path)
    again = load_secrets(tmp_path)
    assert first.is_new and not again.is_new
    assert (first.pepper, first.token_keys, first.admin_key) == (again.pepper, again.token_keys, again.admin_key)
    for path in (tmp_path / "secrets").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key_id_of(first.admin_key) and first.admin_key.startswith("pl_")
    assert first.admin_key not in repr(first)


def test_secrets_that_others_may_read_are_refused(tmp_path: Path) -> None:
    load_secrets(tmp_path)
    (tmp_path / "secrets" / "pepper").chmod(0o644)
    with pytest.raises(SecretsError, match="chmod"):
        load_secrets(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of root's and of others")
def test_a_mounted_secret_of_roots_may_be_read_by_its_group(tmp_path: Path) -> None:
    made = load_secrets(tmp_path)
    pepper = tmp_path / "secrets" / "pepper"
    pepper.chmod(0o440)  # as Kubernetes mounts it for a pod with fsGroup
    assert load_secrets(tmp_path).pepper == made.pepper
    for mode, owner in ((0o460, 0), (0o444, 0), (0o440, 10001)):
        pepper.chmod(mode)
        os.chown(pepper, owner, 10001)
        with pytest.raises(SecretsError, match="chmod"):
            load_secrets(tmp_path)


def test_it_listens_beyond_loopback_only_when_told_that_secrets_are_configured() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_listening(host, False)
    for host in ("0.0.0.0", "10.0.0.1", "::", "example.org"):
        with pytest.raises(SecretsError):
            check_listening(host, False)
        check_listening(host, True)


def test_hashes_do_not_run_together(tmp_path: Path) -> None:
    secrets = load_secrets(tmp_path)
    assert secrets.keyed_hash("user", "ab", "c") != secrets.keyed_hash("user", "a", "bc")
