"""The tree of a new revision: all its contents and pages, stored; nothing of it is visible to readers yet."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from typing import NamedTuple

from cvfs.errors import FormatError, IntegrityError, StoreError
from cvfs.format.tree import Root, Tree, build, diff, edit
from cvfs.model import NO_CONTENT, BlobRef, Entry, Manifest, Record, split
from publisher.packs.locate import locate
from publisher.publishing.options import Options, Watch
from publisher.publishing.packing import Packing
from publisher.publishing.page_writer import PageWriter
from publisher.publishing.pipeline import Pipeline
from publisher.publishing.process_memory import own_memory
from publisher.publishing.report import Changes, Counts
from publisher.publishing.threads import Threads
from publisher.repository.pages import PageLoader
from publisher.repository.reachability import ReachableBlobs
from publisher.repository.subtree import upserts
from publisher.source.scan import Scanner
from publisher.source.small_files import BatchReader
from publisher.source.tree import SourceTree
from publisher.state.index import Index
from publisher.state.index_update import update_index
from publisher.state.stat_cache import StatCache
from publisher.store import Store

_DAMAGED = (StoreError, IntegrityError, FormatError)
"""What a parent raises of which pages are lost or broken."""


class StoredTree(NamedTuple):
    """A tree that is stored, and what it has cost."""

    root: Root
    changes: Changes
    is_repair: bool
    counts: Counts

    @property
    def is_any(self) -> bool:
        return self.changes.is_any or self.is_repair


class NewTree:
    """One tree on its way into one store."""

    def __init__(
        self, store: Store, parent: Manifest, source: SourceTree, index: Index, options: Options, published_s: int
    ) -> None:
        self._store = store
        self._source = source
        self._index = index
        self._options = options
        self._published_s = published_s
        self._pages = PageLoader(store)
        self._parent = parent
        self._old = self._pages.tree(parent)
        self._counts = Counts()
        self._put_page = PageWriter(store, index, self._counts)

    def make(self, watch: Watch) -> StoredTree:
        """Store all contents and pages of the new tree."""
        root = self._store_all(watch)
        changes = self._changes(root, watch)
        return StoredTree(root, changes, not changes.is_any and self._is_repair(root), self._counts)

    def _store_all(self, watch: Watch) -> Root:
        with own_memory():
            self._update_index()
            watch.begin(self._source, self._counts)
            with ExitStack() as stack:
                threads = Threads.start(stack, self._options.workers)
                try:
                    return self._build(threads, watch)
                except BaseException:
                    threads.give_up()
                    raise

    def _update_index(self) -> None:
        """Learn where the parent's contents are; or what is left to learn, if all of it is to be replaced."""
        try:
            update_index(self._index, self._old, self._pages)
        except _DAMAGED:
            if self._options.at:
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

    def _changes(self, root: Root, watch: Watch) -> Changes:
        """What differs from the parent; all does from one that is empty, or of which not all is left."""
        parent, counts = self._parent, self._counts
        if parent.summary.entries > 1:
            try:
                return self._compare(root)
            except _DAMAGED as error:
                if self._options.at:
                    raise
                watch.warn(f"what is new cannot be told: revision {parent.revision} is damaged: {error}")
        is_same = (parent.root, parent.level) == (root.page, root.level)
        return Changes(counts.files, 0, 0, 0, counts.directories + (not is_same))

    def _compare(self, root: Root) -> Changes:
        """Where contents are stored is no difference."""
        files = self._counts.files
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
