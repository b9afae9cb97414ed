"""Garbage collection: removing what no revision that is kept consists of."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from cvfs.model import Ancestor, BlobRef, Digest, Manifest
from publisher.repository.head import Head, read_own_head
from publisher.repository.history import revisions
from publisher.repository.reachability import ReachableBlobs, add_complete
from publisher.repository.signed_blobs import signed_blobs
from publisher.repository.tags import read_tags
from publisher.signing.keys import Keys
from publisher.state.last_published import LastPublished
from publisher.store import DirectoryStore, StoredBlob

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
    `grace_s` ago, since clients may not have heard of the next. Nor is any blob removed that is younger than that, or
    any revision whose root page is."""

    newest: int
    grace_s: int


def collect(
    store: DirectoryStore, keys: Keys, state: Path, policy: Policy, now_s: int, *, is_dry_run: bool
) -> Collected:
    """Remove the blobs that no revision to keep consists of. The caller holds the lock, so that none is being made.

    All manifests and whatever was ever signed beside them stay: they are small, and lead to the revisions that are
    kept. Nothing is removed unless all pages of these could be read. A revision whose root page has gone was collected
    before: it cannot be kept, whatever the policy says now. Raises StoreError, TrustError (the store is not ours, or
    was rolled back), IntegrityError, FormatError, ConfigError.
    """
    head = LastPublished(state, store).check(read_own_head(store, keys))
    choice = _Choice(store, policy, now_s, set(read_tags(store, head).values()))
    reachable, kept, roots, manifests = ReachableBlobs(store), list[int](), set[Digest](), set[BlobRef]()
    for revision in _history(store, head):
        manifests.add(revision.blob)
        if choice.keeps(revision):
            kept.append(revision.manifest.revision)
            add_complete(reachable, revision.manifest)
        else:
            roots.add(revision.manifest.root.id)
    wanted = {blob.id: blob.stored_size for blob in reachable.blobs | manifests | signed_blobs(store, head)}
    removed = _garbage(store, wanted, now_s - policy.grace_s)
    if not is_dry_run:
        _remove(store, removed, roots)
    removed_bytes = sum(blob.size_bytes for blob in removed)
    return Collected(
        head.manifest.repository, kept, len(wanted), sum(wanted.values()), len(removed), removed_bytes, is_dry_run
    )


class _Revision(NamedTuple):
    """A revision, its manifest's blob, and when the next one took its place."""

    manifest: Manifest
    blob: BlobRef
    replaced_s: int


class _Choice:
    """Which revisions are kept, asked for each, newest first."""

    def __init__(self, store: DirectoryStore, policy: Policy, now_s: int, tagged: set[Ancestor]) -> None:
        self._store = store
        self._left = policy.newest
        self._before_s = now_s - policy.grace_s
        self._tagged = tagged

    def keeps(self, revision: _Revision) -> bool:
        manifest = revision.manifest
        self._left -= 1
        is_head = revision.replaced_s == MAX_TIME_S
        is_tagged = Ancestor(manifest.revision, manifest.published_s, revision.blob) in self._tagged
        stored_s = self._store.stored_s(manifest.root.id)
        if stored_s is None and not (is_head or is_tagged):
            return False
        is_young = revision.replaced_s > self._before_s or (stored_s is not None and stored_s > self._before_s)
        return is_young or is_tagged or self._left >= 0


def _history(store: DirectoryStore, head: Head) -> Iterator[_Revision]:
    """Newest first; nothing takes the place of the first. What a manifest says of its date is not asked: it may have
    been set, or be that of a clock that was wrong."""
    ref, replaced_s = head.blob, MAX_TIME_S
    for manifest in revisions(store, head.manifest):
        yield _Revision(manifest, ref, replaced_s)
        replaced_s, ref = store.stored_s(ref.id) or manifest.published_s, manifest.parent or ref


def _garbage(store: DirectoryStore, wanted: dict[Digest, int], before_s: int) -> list[StoredBlob]:
    return [blob for blob in store.list_blobs() if blob.id not in wanted and blob.stored_s <= before_s]


def _remove(store: DirectoryStore, garbage: list[StoredBlob], roots: set[Digest]) -> None:
    """Root pages go first, for good: whenever this ends, a revision that has its root page has all the rest."""
    for blob in garbage:
        if blob.id in roots:
            store.remove_blob(blob.id)
    store.sync()
    for blob in garbage:
        if blob.id not in roots:
            store.remove_blob(blob.id)
