"""Metadata as bytes, and what it says once it has verified. No signature is looked at here."""

import hashlib

import msgspec

from cvfs.model import BlobRef


class Bundle(msgspec.Struct, frozen=True):
    """The bytes of one consistent state: `root` is the newest one, the others are signed below it."""

    root: bytes
    timestamp: bytes = b""
    snapshot: bytes = b""
    targets: bytes = b""


class SignedTarget(msgspec.Struct, frozen=True):
    """What the targets say of a document: the blob that it is, the size and SHA-256 of its plain bytes."""

    blob: BlobRef
    size_bytes: int
    sha256: str

    def matches(self, plain: bytes) -> bool:
        """Whether `plain` is the document that was signed."""
        return len(plain) == self.size_bytes and hashlib.sha256(plain).hexdigest() == self.sha256


class Ahead(msgspec.Struct, frozen=True):
    """What a timestamp says will be asked for next; nothing of it is to be believed."""

    snapshot: int
    targets: int
    manifest: BlobRef
    root: BlobRef


class Chain(msgspec.Struct, frozen=True):
    """Metadata that has verified. `new_root_ids`: the roots that led from the one that was given to the newest.

    `expires_s`: when the first of the four has to be renewed, in seconds since 1970; `root_expires_s`: the root alone.
    """

    bundle: Bundle
    new_root_ids: tuple[str, ...]
    repository: str
    root_version: int
    timestamp_version: int
    expires_s: int
    root_expires_s: int
    manifest: SignedTarget


def root_id(root: bytes) -> str:
    """What a root is pinned by: the SHA-256 of its file."""
    return hashlib.sha256(root).hexdigest()
