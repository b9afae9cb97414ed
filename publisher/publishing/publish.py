"""Publishing: (tree, parent revision, options) -> new objects and a new manifest; then the head moves, last of all."""

import os
import time
from contextlib import suppress
from pathlib import Path

from cvfs.errors import StoreError
from publisher.publishing.new_tree import NewTree
from publisher.publishing.options import SILENT, Options, Watch
from publisher.publishing.report import Report
from publisher.repository.head import Head, keys_of, read_head, read_own_head
from publisher.repository.head_update import SignersByRole, advance, next_manifest, online_signers
from publisher.signing.keys import Keys
from publisher.source.tree import SourceTree
from publisher.state.database import BROKEN, DatabaseError
from publisher.state.index import open_index, reset_index
from publisher.state.last_published import LastPublished
from publisher.state.tree_expiry import forget_trees, note_tree
from publisher.store import DryRunStore, Store


def publish(
    store: Store,
    tree: str,
    state: Path,
    options: Options,
    now_s: int,
    watch: Watch = SILENT,
    keys: Keys | None = None,
) -> Report:
    """Make the newest revision's subtree at `options.at` equal to the directory `tree`. The caller holds the lock.

    `state` keeps what makes the next publish quick. Nothing is visible to readers before all is stored. There is a new
    revision if something has changed, or if the newest one names packs that were lost, and which have been made again.
    Without `keys`, those in the usual place sign it; a dry run needs none. Raises PublishError, StoreError, TrustError
    (the store is not ours, or was rolled back), ConfigError (keys).
    """
    try:
        return _publish(store, tree, state, options, now_s, watch, keys)
    except BROKEN:
        reset_index(state)
    try:
        return _publish(store, tree, state, options, now_s, watch, keys)
    except BROKEN as error:
        raise StoreError(f"cannot keep state in {state}: {error} (choose with --state DIR)") from error


def _publish(
    store: Store, tree: str, state: Path, options: Options, now_s: int, watch: Watch, keys: Keys | None
) -> Report:
    started_s = time.monotonic()
    published_s = now_s if options.published_s is None else options.published_s
    if options.is_dry_run:
        store = DryRunStore(store)
    head, signers = _parent(store, options, keys)
    last = LastPublished(state, store)
    head = last.check(head, accept=options.accepts_rollback)
    source = SourceTree(tree, options.excluded)
    try:
        with open_index(state, store.has_blob, watch.wait, keep=not options.is_dry_run) as index:
            note_tree(index, os.fsencode(source.path), now_s)
            made = NewTree(store, head.manifest, source, index, options, published_s).make(watch)
            # After a rollback, clients have to see signatures with higher versions, whatever has changed.
            is_published = (made.is_any or head.passed_over > 0) and not options.is_dry_run
            if is_published:
                manifest = next_manifest(head, made.root, published_s, options.message)
                last.keep(advance(store, head, manifest, signers, now_s), watch.warn)
            with suppress(DatabaseError, *BROKEN):  # It is published; what is not remembered is only found out again.
                if is_published:
                    index.set_covered(made.root.page, made.root.level)
                forget_trees(index, now_s)
    finally:
        source.close()
    return Report(
        repository=head.manifest.repository,
        revision=head.manifest.revision + is_published,
        is_published=is_published,
        is_dry_run=options.is_dry_run,
        is_repair=made.is_repair,
        root=made.root.page.id.hex(),
        changes=made.changes,
        counts=made.counts,
        seconds=time.monotonic() - started_s,
    )


def _parent(store: Store, options: Options, keys: Keys | None) -> tuple[Head, SignersByRole]:
    """The newest revision, and the keys to sign the next one with: if one is missing, that must not cost an hour."""
    if options.is_dry_run:
        return read_head(store), {}
    keys = keys_of(store, keys)
    head = read_own_head(store, keys)
    return head, online_signers(keys, head.chain.bundle.root)
