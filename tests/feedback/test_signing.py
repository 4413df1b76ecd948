"""Keys and signatures of manifests."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from feedback.errors import SignatureError, SigningKeyError
from feedback.signing import make_signing_key, read_signing_key, read_trusted_keys

MANIFEST = b'{"id": "c-000001-0123456789ab"}'


def test_a_key_signs_what_its_public_key_proves(tmp_path: Path):
    key = make_signing_key(tmp_path / "key.pem")
    (tmp_path / "trusted.pem").write_bytes(key.public_pem)
    again, trusted = read_signing_key(str(tmp_path / "key.pem")), read_trusted_keys(str(tmp_path / "trusted.pem"))
    assert again is not None and trusted is not None
    assert trusted.check(MANIFEST, again.sign(MANIFEST)) == key.fingerprint
    with pytest.raises(SignatureError, match="is wrong"):
        trusted.check(MANIFEST + b" ", again.sign(MANIFEST))


def test_while_a_key_is_replaced_both_are_trusted(tmp_path: Path):
    old, new = make_signing_key(tmp_path / "old.pem"), make_signing_key(tmp_path / "new.pem")
    (tmp_path / "trusted.pem").write_bytes(b"the old one:\n" + old.public_pem + b"\nthe new one:\n" + new.public_pem)
    trusted = read_trusted_keys(str(tmp_path / "trusted.pem"))
    assert trusted is not None
    assert [trusted.check(MANIFEST, key.sign(MANIFEST)) for key in (old, new)] == [old.fingerprint, new.fingerprint]


def test_a_private_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path):
    make_signing_key(tmp_path / "key.pem")
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        make_signing_key(tmp_path / "key.pem")


def test_openssl_reads_our_keys_and_makes_others_that_we_read(tmp_path: Path):
    key = make_signing_key(tmp_path / "key.pem")
    said = subprocess.run(
        ["openssl", "pkey", "-in", str(tmp_path / "key.pem"), "-pubout"], capture_output=True, check=True
    )
    assert said.stdout == key.public_pem
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(tmp_path / "theirs.pem")], check=True)
    theirs = read_signing_key(str(tmp_path / "theirs.pem"))
    assert theirs is not None and theirs.fingerprint != key.fingerprint


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN PUBLIC KEY-----\nMA==\n-----END PUBLIC KEY-----\n"])
def test_files_without_usable_keys_are_refused_in_words(tmp_path: Path, content: bytes):
    path = tmp_path / "keys.pem"
    path.write_bytes(content)
    with pytest.raises(SigningKeyError, match="no usable private key"):
        read_signing_key(str(path))
    with pytest.raises(SigningKeyError, match="no usable public keys"):
        read_trusted_keys(str(path))
    assert read_signing_key("") is None and read_trusted_keys("") is None


def test_keys_of_another_kind_are_refused(tmp_path: Path):
    path = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "rsa", "-out", str(path)], check=True, capture_output=True)
    with pytest.raises(SigningKeyError, match="not of the kind Ed25519"):
        read_signing_key(str(path))
