"""The head of a store, moved on: signed by three roles, the timestamp last."""

from collections.abc import Callable
from itertools import count

from cvfs.format.blob import seal
from cvfs.format.history import ancestors_after
from cvfs.format.manifest import encode_manifest
from cvfs.format.tree import Root
from cvfs.model import BlobRef, Manifest
from cvfs.trust import names
from cvfs.trust.values import Ahead
from publisher.repository.head import Head, Mark
from publisher.signing import metadata
from publisher.signing.keys import Keys, Signer
from publisher.store import Store

SignersByRole = dict[str, list[Signer]]
"""Those at hand, by role."""

_ONLINE = ("targets", "snapshot", "timestamp")


def online_signers(keys: Keys, root: bytes) -> SignersByRole:
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


def advance(store: Store, head: Head, manifest: Manifest, signers: SignersByRole, now_s: int) -> Mark:
    """The last step of a revision: all that `manifest` speaks of is stored; make it the head.

    Raises HeadMovedError if somebody else has moved it meanwhile, and StoreError.
    """
    ref, plain = put_manifest(store, manifest)
    before = head.chain.bundle.targets

    def make(version: int) -> bytes:
        return metadata.make_targets(version, ref, plain, now_s, signers["targets"], before)

    return swap(store, head._replace(manifest=manifest, blob=ref), make, signers, now_s)


def swap(store: Store, head: Head, make: Callable[[int], bytes], signers: SignersByRole, now_s: int) -> Mark:
    """Sign targets, which `make` makes for a version, a snapshot and a timestamp, and move the head of the store there
    from the chain of `head`, whose manifest is the one that the targets name."""
    store.sync()
    bundle = head.chain.bundle
    version, targets = add(store, "targets", head.version(bundle.targets), make)
    timestamp = next_timestamp(store, head, version, targets, signers, now_s)
    store.swap_head(bundle.timestamp, timestamp)
    return Mark(head.manifest.revision, head.blob.id.hex(), version, metadata.version_of(timestamp))


def next_timestamp(
    store: Store, head: Head, targets_version: int, targets: bytes, signers: SignersByRole, now_s: int
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
