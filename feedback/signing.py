"""Signs manifests with Ed25519 and checks such signatures.

A signature covers the manifest's bytes, hence every file's sha256. Keys are PEM files: one private key (PKCS 8) for who
publishes; any number of public keys for who fetches, so that a key can be replaced while checkpoints of both are served.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from feedback.errors import SignatureError, SigningKeyError

_CONTEXT = b"prefloop checkpoint manifest v1\n"  # signed with it: the key cannot be made to sign for anything else
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


class _Signature(msgspec.Struct, frozen=True):
    """The file manifest.sig. key: fingerprint of the public key; signature: base64."""

    key: str
    signature: str


@dataclass(frozen=True)
class SigningKey:
    """A private key."""

    private: Ed25519PrivateKey

    def sign(self, manifest: bytes) -> bytes:
        """The content of manifest.sig for a manifest's bytes."""
        signature = base64.b64encode(self.private.sign(_CONTEXT + manifest)).decode()
        return msgspec.json.encode(_Signature(fingerprint(self.private.public_key()), signature)) + b"\n"

    @property
    def public_pem(self) -> bytes:
        """The public key, as a trusted keys file holds it."""
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def fingerprint(self) -> str:
        """How its signatures and messages name the key."""
        return fingerprint(self.private.public_key())


@dataclass(frozen=True)
class TrustedKeys:
    """The public keys whose signatures count, by fingerprint."""

    by_fingerprint: dict[str, Ed25519PublicKey]

    def check(self, manifest: bytes, signature: bytes | None) -> str:
        """The fingerprint of the key that signed these bytes. Raises SignatureError with what is wrong."""
        if signature is None:
            raise SignatureError("it is not signed, and trusted keys are configured")
        try:
            said = msgspec.json.decode(signature, type=_Signature)
            raw = base64.b64decode(said.signature, validate=True)
        except ValueError as error:
            raise SignatureError(f"its signature cannot be read: {error}") from error
        key = self.by_fingerprint.get(said.key)
        if key is None:
            raise SignatureError(f"it is signed by the key {said.key[:64]!r}, which is not trusted")
        try:
            key.verify(raw, _CONTEXT + manifest)
        except InvalidSignature as error:
            raise SignatureError(f"its signature by the key {said.key} is wrong") from error
        return said.key


def fingerprint(key: Ed25519PublicKey) -> str:
    """First 16 hexadecimal digits of the sha256 of the raw public key."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return sha256(raw).hexdigest()[:16]


def make_signing_key(path: Path) -> SigningKey:
    """Make a key and write it to a new file that its owner alone can read. Raises FileExistsError, OSError."""
    key = SigningKey(Ed25519PrivateKey.generate())
    pem = key.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    return key


def read_signing_key(path: str) -> SigningKey | None:
    """The private key in a PEM file; None for no path. Raises SigningKeyError."""
    if not path:
        return None
    try:
        key = serialization.load_pem_private_key(Path(path).read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SigningKeyError(f"no usable private key in {path}: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(f"the private key in {path} is not of the kind Ed25519")
    return SigningKey(key)


def read_trusted_keys(path: str) -> TrustedKeys | None:
    """The public keys in a PEM file, at least one; None for no path: nothing need be signed. Raises SigningKeyError."""
    if not path:
        return None
    try:
        return parse_trusted_keys(_PEM.findall(Path(path).read_bytes()))
    except (OSError, ValueError) as error:
        raise SigningKeyError(f"no usable public keys in {path}: {error}") from error


def parse_trusted_keys(pems: Sequence[bytes]) -> TrustedKeys:
    """The public keys of PEM blocks. Raises ValueError if there is none, or one of another kind."""
    found: dict[str, Ed25519PublicKey] = {}
    for pem in pems:
        key = serialization.load_pem_public_key(pem)
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("one of the keys is not of the kind Ed25519")
        found[fingerprint(key)] = key
    if not found:
        raise ValueError("there is no PEM block of a public key")
    return TrustedKeys(found)
