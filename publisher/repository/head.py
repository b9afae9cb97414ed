"""The head of a store: read and verified as a client does, and moved; signed by three roles, the timestamp last."""

import os
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import msgspec

from cvfs.errors import ConfigError, FormatError, StatusError, StoreError, TrustError
from cvfs.format.blob import blob_path, seal, unseal
from cvfs.format.history import ancestors_after
from cvfs.format.manifest import decode_manifest, encode_manifest
from cvfs.format.tree import Root
from cvfs.model import BlobRef, Manifest
from cvfs.trust import names
from cvfs.trust.chain import follow
from cvfs.trust.values import Ahead, Bundle, Chain, root_id
from publisher.signing import metadata
from publisher.signing.keys import Keys, Signer, default_keys
from publisher.store import Store

ROOT_SHA256 = "CVFS_ROOT_SHA256"
_NEVER_EXPIRED_S = 0
"""The publisher's own clock does not matter to it: what has expired is what it is about to renew."""

Signers = dict[str, list[Signer]]
_ONLINE = ("targets", "snapshot", "timestamp")


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
        raise StoreError(f"the store {store.location} is not complete: {error}") from error
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
            f"cannot tell whether {store.location} is ours: no root.json in {keys.directory} ({ROOT_SHA256})"
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


def online_signers(keys: Keys, root: bytes) -> Signers:
    """The keys that a new revision needs. Raises ConfigError if one is not here."""
    parsed = metadata.parse_root(root)
    return {role: list(metadata.select(parsed, role, keys.signers(role))) for role in _ONLINE}


def put_manifest(store: Store, manifest: Manifest) -> tuple[BlobRef, bytes]:
    """Store a manifest: where it is, and its plain bytes."""
    plain = encode_manifest(manifest)
    ref, stored = seal(plain)
    store.put_blob(ref, stored)
    return ref, plain


def next_manifest(head: Head, root: Root, published_s: int, message: str = "") -> Manifest:
    """The manifest of the revision after `head`. No revision is older than its parent, whatever the clock says."""
    parent = head.manifest
    return Manifest(
        repository=parent.repository,
        revision=parent.revision + 1,
        published_s=max(published_s, parent.published_s),
        root=root.page,
        level=root.level,
        summary=root.summary,
        parent=head.blob,
        message=message,
        ancestors=ancestors_after(parent, head.blob),
    )


def advance(store: Store, head: Head, manifest: Manifest, signers: Signers, now_s: int) -> Mark:
    """The last step of a revision: all that `manifest` speaks of is stored; make it the head.

    Raises HeadMovedError if somebody else has moved it meanwhile, and StoreError.
    """
    ref, plain = put_manifest(store, manifest)
    before = head.chain.bundle.targets

    def make(version: int) -> bytes:
        return metadata.make_targets(version, ref, plain, now_s, signers["targets"], before)

    return swap(store, head._replace(manifest=manifest, blob=ref), make, signers, now_s)


def swap(store: Store, head: Head, make: Callable[[int], bytes], signers: Signers, now_s: int) -> Mark:
    """Sign targets, which `make` makes for a version, a snapshot and a timestamp, and move the head of the store there
    from the chain of `head`, whose manifest is the one that the targets name."""
    store.sync()
    bundle = head.chain.bundle
    version, targets = add(store, "targets", head.version(bundle.targets), make)
    timestamp = make_timestamp(store, head, version, targets, signers, now_s)
    store.swap_head(bundle.timestamp, timestamp)
    return Mark(head.manifest.revision, head.blob.id.hex(), version, metadata.version_of(timestamp))


def make_timestamp(
    store: Store, head: Head, targets_version: int, targets: bytes, signers: Signers, now_s: int
) -> bytes:
    """Store a new snapshot of `targets`, and return the timestamp that is to replace the one in the chain of `head`."""
    bundle = head.chain.bundle

    def make(version: int) -> bytes:
        return metadata.make_snapshot(version, targets_version, targets, now_s, signers["snapshot"])

    version, snapshot = add(store, "snapshot", head.version(bundle.snapshot), make)
    after, days = head.version(bundle.timestamp) + 1, metadata.days_of(bundle.timestamp)
    ahead = Ahead(version, targets_version, head.blob, head.manifest.root)
    return metadata.make_timestamp(after, version, snapshot, days, now_s, signers["timestamp"], ahead)


def add(store: Store, role: str, before: int, make: Callable[[int], bytes]) -> tuple[int, bytes]:
    """Store the next version of what `role` signs, `before` being the present one.

    A version that is there already was left by a publisher that died, or that is about to lose or win a race: it is
    passed over, never replaced, so that what a timestamp names stays what it named.
    """
    for version in count(before + 1):
        data = make(version)
        if store.add_metadata(names.metadata_path(role, version), data):
            return version, data
    raise AssertionError("unreachable")
