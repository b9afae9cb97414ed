"""Publishing: (tree, parent revision, options) -> new objects and a new manifest; then the head moves, last of all."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from cvfs.errors import StoreError
from cvfs.format.blob import DEFAULT_LEVEL
from cvfs.format.manifest import check_message
from cvfs.format.tree import Root, Tree, build, diff, edit
from cvfs.model import NO_CONTENT, BlobRef, Entry, Manifest, Record, split
from publisher.packs.locate import locate
from publisher.publishing.packing import Packing
from publisher.publishing.page_writer import PageWriter
from publisher.publishing.pipeline import Pipeline
from publisher.publishing.process_memory import own_memory
from publisher.publishing.report import Changes, Counts, Report
from publisher.publishing.subtree import upserts
from publisher.publishing.threads import Threads, usable_cpus
from publisher.repository.head import (
    Head,
    Signers,
    advance,
    keys_of,
    next_manifest,
    online_signers,
    read_head,
    read_own_head,
)
from publisher.repository.pages import Pages
from publisher.repository.reachability import ReachableBlobs
from publisher.signing.keys import Keys
from publisher.source.scan import Scanner
from publisher.source.small_files import BatchReader
from publisher.source.tree import Excluded, SourceTree
from publisher.state.index import BROKEN, Index, open_index, reset_index
from publisher.state.index_update import update_index
from publisher.state.last_published import LastPublished
from publisher.state.stat_cache import StatCache
from publisher.state.tree_expiry import forget_trees, note_tree
from publisher.store import DryRunStore, Store


@dataclass(frozen=True, slots=True)
class Options:
    """How to publish. `at`: the path in the repository that becomes equal to the tree; b"" is all of it.

    `accepts_rollback`: go on from an older revision than this host knows of. `published_s`: when the revision says that
    it was published; None: when it is.
    """

    at: bytes = b""
    level: int = DEFAULT_LEVEL
    message: str = ""
    is_dry_run: bool = False
    accepts_rollback: bool = False
    excluded: Excluded | None = None
    workers: int = field(default_factory=usable_cpus)
    published_s: int | None = None

    def __post_init__(self) -> None:
        """Raises FormatError: not a message, which must not be found out when all is done."""
        check_message(self.message)


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


class Watch(NamedTuple):
    """Who is told while a tree is published: `begin` with the tree, `tick` often, when more has been counted, `warn` of
    what has gone wrong and does no harm; `wait` if another publisher uses the same state; None: do not wait for it."""

    begin: Callable[[SourceTree, Counts], None] = _ignore
    tick: Callable[[], None] = _ignore
    warn: Callable[[str], None] = _ignore
    wait: Callable[[], None] | None = _ignore


SILENT = Watch()


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
            made = _Publication(store, head.manifest, source, index, options, published_s).make(watch)
            # After a rollback, clients have to see signatures with higher versions, whatever has changed.
            is_published = (made.is_any or head.passed_over > 0) and not options.is_dry_run
            if is_published:
                manifest = next_manifest(head, made.root, published_s, options.message)
                last.keep(advance(store, head, manifest, signers, now_s), watch.warn)
            with suppress(*BROKEN):  # It is published; what is not remembered is only found out again.
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


def _parent(store: Store, options: Options, keys: Keys | None) -> tuple[Head, Signers]:
    """The newest revision, and the keys to sign the next one with: if one is missing, that must not cost an hour."""
    if options.is_dry_run:
        return read_head(store), {}
    keys = keys_of(store, keys)
    head = read_own_head(store, keys)
    return head, online_signers(keys, head.chain.bundle.root)


class _Made(NamedTuple):
    """A tree that is stored, and what it has cost."""

    root: Root
    changes: Changes
    is_repair: bool
    counts: Counts

    @property
    def is_any(self) -> bool:
        return self.changes.is_any or self.is_repair


class _Publication:
    """One tree on its way into one store."""

    def __init__(
        self, store: Store, parent: Manifest, source: SourceTree, index: Index, options: Options, published_s: int
    ) -> None:
        self._store = store
        self._source = source
        self._index = index
        self._options = options
        self._published_s = published_s
        self._pages = Pages(store)
        self._parent = parent
        self._old = self._pages.tree(parent)
        self._counts = Counts()
        self._put_page = PageWriter(store, index, self._counts)

    def make(self, watch: Watch) -> _Made:
        """Store all contents and pages of the new tree."""
        root = self._store_all(watch)
        changes = self._changes(root)
        return _Made(root, changes, not changes.is_any and self._is_repair(root), self._counts)

    def _store_all(self, watch: Watch) -> Root:
        with own_memory():
            update_index(self._index, self._old, self._pages)
            watch.begin(self._source, self._counts)
            with ExitStack() as stack:
                threads = Threads.start(stack, self._options.workers)
                try:
                    return self._build(threads, watch)
                except BaseException:
                    threads.give_up()
                    raise

    def _build(self, threads: Threads, watch: Watch) -> Root:
        options, index = self._options, self._index
        put_pack = self._would_put if options.is_dry_run else self._store.put_blob
        packing = Packing(index, put_pack, options.level, threads.packers, 2 * options.workers, self._counts)
        cache = StatCache(index, os.fsencode(self._source.path))
        scanner = Scanner(self._source, options.at, cache, lambda entry: locate(index, self._pages, entry))
        put_page, counts = self._put_page, self._counts
        reader, cutter = BatchReader(self._source, threads.readers), threads.cutter

        def tick() -> None:
            watch.tick()
            index.save_seldom()

        pipeline = Pipeline(self._source, index, cache, packing, put_page, reader, cutter, counts, tick)
        root = scanner.root(split(options.at)[1])
        records = pipeline.records(scanner.runs())
        return self._assemble(root, records)

    def _would_put(self, ref: BlobRef, _stored: bytes) -> bool:
        """In place of storing a pack, in a dry run: it is not kept in memory, as pages are."""
        return not self._store.has_blob(ref)

    def _assemble(self, root: Entry, records: Iterator[Record]) -> Root:
        """The whole new tree: the source's records alone, or in their place among those of the old tree."""
        at = self._options.at
        if not at:
            return build(chain([Record(b"", root, NO_CONTENT)], records), self._put_page)
        news = upserts(self._old, at, root, records, self._published_s)
        return edit(self._old, self._pages, self._put_page, news, at)

    def _changes(self, root: Root) -> Changes:
        """What differs from the parent. Where contents are stored is no difference."""
        parent, files = self._parent, self._counts.files
        if parent.summary.entries == 1:
            is_same = (parent.root, parent.level) == (root.page, root.level)
            return Changes(files, 0, 0, 0, self._counts.directories + (not is_same))
        new = changed = removed = directories = 0
        for before, after in diff(self._old, Tree(root.page, root.level, self._pages), self._pages):
            some = after or before
            if some is None or some.entry.is_directory:
                directories += 1
            elif before is None or before.entry.is_directory:
                new += 1
            elif after is None:
                removed += 1
            else:
                changed += 1
        return Changes(new, changed, removed, max(files - new - changed, 0), directories)

    def _is_repair(self, root: Root) -> bool:
        """Whether the parent has lost blobs, and the new tree is another: it has others in their place."""
        missing = self._index.blobs.missing
        if not missing or self._parent.root == root.page:
            return False
        reachable = ReachableBlobs(self._store)
        reachable.add(self._parent)
        return not missing.isdisjoint(reachable.blobs)
