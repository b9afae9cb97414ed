"""Garbage collection: removing what no revision that is kept consists of."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from cvfs.model import Ancestor, BlobRef, Digest, Manifest
from publisher.documents import documents
from publisher.head import Head, read_own_head
from publisher.history import read_manifest
from publisher.keys import Keys
from publisher.reach import Reach
from publisher.remember import Memory
from publisher.store import DirectoryStore, Store
from publisher.tags import read_tags

MAX_TIME_S = (1 << 63) - 1


class Collected(msgspec.Struct, frozen=True):
    """What was removed, or would be. `kept`: the revisions that can still be read, newest first."""

    repository: str
    kept: list[int]
    kept_blobs: int
    kept_bytes: int
    removed_blobs: int
    removed_bytes: int
    is_dry_run: bool


class Policy(msgspec.Struct, frozen=True):
    """Which revisions to keep: the newest `newest`, all that have a tag, and those that were the newest one less than
    `grace_s` ago, since clients may not have heard of the next. Nor is any blob removed that is younger than that."""

    newest: int
    grace_s: int


def collect(
    store: DirectoryStore, keys: Keys, state: Path, policy: Policy, now_s: int, *, is_dry_run: bool
) -> Collected:
    """Remove the blobs that no revision to keep consists of. The caller holds the lock, so that none is being made.

    All manifests and whatever was ever signed beside them stay: they are small, and lead to the revisions that are
    kept. Nothing is removed unless all pages of these could be read. Raises StoreError, TrustError (the store is not
    ours, or was rolled back), IntegrityError, FormatError, ConfigError.
    """
    head = Memory(state, store).check(read_own_head(store, keys))
    tagged = read_tags(store, head)
    reach, kept, manifests = Reach(store), list[int](), set[BlobRef]()
    for manifest, ref, replaced_s in _history(store, head):
        manifests.add(ref)
        is_recent = len(kept) < policy.newest or replaced_s > now_s - policy.grace_s
        if is_recent or Ancestor(manifest.revision, manifest.published_s, ref) in tagged.values():
            kept.append(manifest.revision)
            reach.add(manifest)
    wanted = {blob.id: blob.stored_size for blob in reach.blobs | manifests | documents(store, head)}
    removed_blobs, removed_bytes = _sweep(store, wanted, now_s - policy.grace_s, is_dry_run=is_dry_run)
    return Collected(
        head.manifest.repository, kept, len(wanted), sum(wanted.values()), removed_blobs, removed_bytes, is_dry_run
    )


def _history(store: Store, head: Head) -> Iterator[tuple[Manifest, BlobRef, int]]:
    """Each revision, newest first, with its manifest's blob, and when the next one took its place."""
    manifest, ref, replaced_s = head.manifest, head.blob, MAX_TIME_S
    while True:
        yield manifest, ref, replaced_s
        if manifest.parent is None:
            return
        replaced_s, ref = manifest.published_s, manifest.parent
        manifest = read_manifest(store, ref)


def _sweep(store: DirectoryStore, wanted: dict[Digest, int], before_s: int, *, is_dry_run: bool) -> tuple[int, int]:
    """How many blobs went, and their bytes."""
    count = size_bytes = 0
    for blob in store.list_blobs():
        if blob.id not in wanted and blob.stored_s <= before_s:
            count, size_bytes = count + 1, size_bytes + blob.size_bytes
            if not is_dry_run:
                store.remove_blob(blob.id)
    return count, size_bytes
