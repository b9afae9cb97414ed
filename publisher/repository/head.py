"""The head of a store: read and verified as a client does."""

import os
from typing import NamedTuple

import msgspec

from cvfs.errors import ConfigError, FormatError, StatusError, StoreError, TrustError
from cvfs.format.blob import blob_path, unseal
from cvfs.format.manifest import decode_manifest
from cvfs.model import BlobRef, Manifest
from cvfs.trust import names
from cvfs.trust.chain import follow
from cvfs.trust.values import Bundle, Chain, root_id
from publisher.signing import metadata
from publisher.signing.keys import Keys, default_keys
from publisher.store import Store

ROOT_SHA256 = "CVFS_ROOT_SHA256"
_NEVER_EXPIRED_S = 0
"""The publisher's own clock does not matter to it: what has expired is what it is about to renew."""


class Mark(msgspec.Struct, frozen=True):
    """A revision that was the newest: its number, the id of its manifest, the versions that were signed for it."""

    revision: int
    manifest: str
    targets: int
    timestamp: int


class Head(NamedTuple):
    """The newest revision: what its manifest says, where it is, and the chain of signatures that leads to it.

    `passed_over`: what is signed next has higher versions.
    """

    manifest: Manifest
    blob: BlobRef
    chain: Chain
    passed_over: int = 0

    @property
    def mark(self) -> Mark:
        targets = metadata.version_of(self.chain.bundle.targets)
        return Mark(self.manifest.revision, self.blob.id.hex(), targets, self.chain.timestamp_version)

    def version(self, data: bytes) -> int:
        """Which version of some of the chain's metadata the next one has to be above."""
        return max(metadata.version_of(data), self.passed_over)


def read_head(store: Store, root: bytes | None = None) -> Head:
    """The head, if it is signed as `root` says; without one, as the store's own first root says, which proves nothing.

    Raises StoreError, TrustError, IntegrityError, FormatError.
    """
    try:
        first = root or store.get_metadata(names.metadata_path("root", 1), names.MAX_ROOT_BYTES)
        chain = follow(Bundle(first), store.get_metadata, _NEVER_EXPIRED_S)
    except StatusError as error:
        raise StoreError(f"the store {store.location} is not complete: {error.url} is missing") from error
    except TrustError as error:
        raise TrustError(f"the head of {store.location} is not signed as it should be: {error}") from error
    blob = chain.manifest.blob
    plain = unseal(blob, store.get_blob(blob), f"{store.location}/{blob_path(blob.id)}")
    if not chain.manifest.matches(plain):
        raise FormatError(f"{store.location}: the targets contradict themselves about the manifest")
    return Head(decode_manifest(plain), blob, chain)


def keys_of(store: Store, keys: Keys | None = None) -> Keys:
    """The keys for a store: `keys`, or those in the directory for its repository."""
    return keys or Keys(default_keys(read_head(store).manifest.repository))


def read_own_head(store: Store, keys: Keys) -> Head:
    """The head, if it is ours: signed as the root beside the keys says, or the one named in the environment.

    Whoever signs on top of what lies in a store vouches for all of it. Raises ConfigError if neither root is there, and
    what `read_head` does.
    """
    root = keys.known_root() or _root_of_environment(store)
    if root is None:
        raise ConfigError(
            f"cannot tell whether {store.location} is ours: no root.json in {keys.directory} "
            f"(name the directory of its keys with --keys, or the SHA-256 of its root in {ROOT_SHA256})"
        )
    return read_head(store, root)


def _root_of_environment(store: Store) -> bytes | None:
    wanted = os.environ.get(ROOT_SHA256, "").lower()
    if not wanted:
        return None
    for version in range(1, names.MAX_ROOT_STEPS):
        try:
            root = store.get_metadata(names.metadata_path("root", version), names.MAX_ROOT_BYTES)
        except StatusError:
            break
        if root_id(root) == wanted:
            return root
    raise TrustError(f"{store.location} has no root with the SHA-256 in {ROOT_SHA256}")
