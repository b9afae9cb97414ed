"""From a scanned tree to its records: files read, deduplicated, packed and stored on all cores.

One thread, the caller's, decides everything, in key order: what is known already, what goes into which pack. Worker
threads only compress, hash and store; or cut large files; or read, where that has to be waited for. So the same tree
gives the same packs however the threads run, and memory holds no more than a few batches, a few packs, and the records
that wait for them.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import NamedTuple

from msgspec.structs import replace

from cvfs.limits import MIB
from cvfs.model import Entry, Record
from publisher.packs.large_objects import Chunked, PutPage
from publisher.packs.pack import MAX_SMALL_BYTES, MAX_SPAN, Nowhere, Place
from publisher.publishing.packing import Packing
from publisher.publishing.report import Counts
from publisher.publishing.threads import READERS
from publisher.source.large_files import LargeReader
from publisher.source.scanned import Run, Unread
from publisher.source.small_files import BatchReader, Plain
from publisher.source.tree import SourceTree
from publisher.state.index import Index
from publisher.state.stat_cache import StatCache

_BATCH_FILES = 128
_BATCH_BYTES = 2 * MIB
"""A task for a worker: big enough to make its overhead small, small enough to share out."""

_NOWHERE = Nowhere()


class _Batch(NamedTuple):
    files: list[Unread]
    future: Future[list[Plain]]


class Pipeline:
    """Publishes the contents of one tree. `reader` reads its small files, `cutter`'s one thread the large ones.

    `tick` is called often, to show progress.
    """

    def __init__(
        self,
        source: SourceTree,
        index: Index,
        cache: StatCache,
        packing: Packing,
        put_page: PutPage,
        reader: BatchReader,
        cutter: Executor,
        counts: Counts,
        tick: Callable[[], None],
    ) -> None:
        self._source = source
        self._index = index
        self._cache = cache
        self._packing = packing
        self._put_page = put_page
        self._reader = reader
        self._cutter = cutter
        self._counts = counts
        self._tick = tick
        self._batch: list[Unread] = []
        self._batch_bytes = 0
        self._reading: deque[_Batch] = deque()
        self._queue: deque[Record | Unread | Run] = deque()
        self._number = 0

    def records(self, runs: Iterator[Run]) -> Iterator[Record]:
        """The records of the tree's files, in the order of the runs. Raises PublishError, StoreError."""
        for run in runs:
            for item in run.items:
                self._take(item)
            if run.is_changed:
                self._queue.append(run)
            self._bound_span()
            self._collect_done()
            yield from self._drain(wait_above=2 * MAX_SPAN)
        self._collect_all()
        self._packing.cut()
        yield from self._drain(wait_above=0)

    def _take(self, item: Record | Unread) -> None:
        self._number += 1
        self._queue.append(item)
        if isinstance(item, Record):
            self._count(item.entry)
            return
        item.number = self._number
        if item.same is not None:
            return
        if item.status.st_size > MAX_SMALL_BYTES:
            self._read_large(item)
            return
        self._batch.append(item)
        self._batch_bytes += item.status.st_size
        if len(self._batch) >= _BATCH_FILES or self._batch_bytes >= _BATCH_BYTES:
            self._submit_batch()

    def _count(self, entry: Entry) -> None:
        if entry.is_directory:
            self._counts.directories += 1
        else:
            self._counts.files += 1
            if entry.content_id:
                self._counts.tree_bytes += entry.size

    def _submit_batch(self) -> None:
        while len(self._reading) >= READERS:
            self._collect()
        if self._batch:
            files, self._batch, self._batch_bytes = self._batch, [], 0
            self._reading.append(_Batch(files, self._reader.submit(files)))
        self._collect_done()

    def _collect_done(self) -> None:
        while self._reading and self._reading[0].future.done():
            self._collect()
        self._packing.settle_done()
        self._tick()

    def _collect_all(self) -> None:
        self._submit_batch()
        while self._reading:
            self._collect()

    def _collect(self) -> None:
        """Wait for the oldest batch and give its files their places."""
        batch = self._reading.popleft()
        for file, plain in zip(batch.files, batch.future.result(), strict=True):
            self._counts.files_read += 1
            self._counts.read_bytes += len(plain.data)
            file.place = self._place(file, plain)

    def _place(self, file: Unread, plain: Plain) -> Place:
        data, content_id = plain
        if not data:
            return _NOWHERE
        place, is_new = self._packing.objects.place(content_id, data, file.number)
        if not is_new:
            self._counts.dedup_bytes += len(data)
        return place

    def _read_large(self, file: Unread) -> None:
        if not self._try_large(file) and not self._try_large(file):
            raise self._source.changed(file.path)

    def _try_large(self, file: Unread) -> bool:
        """Read a large file, the next window while one is dealt with. False if it changed meanwhile."""
        place = Chunked(self._put_page, self._index.add_large)
        reader = LargeReader(self._source, file)
        step = self._cutter.submit(reader.step)
        try:
            is_done = False
            while not is_done:
                chunks, is_done = step.result(), reader.is_done
                if not is_done:
                    step = self._cutter.submit(reader.step)
                for chunk in chunks:
                    inside, is_new = self._packing.chunks.place(chunk.chunk_id, chunk.data, file.number)
                    place.add(chunk, inside)
                    if not is_new:
                        self._counts.dedup_bytes += len(chunk.data)
                self._collect_done()
        finally:
            step.exception()  # Not before the worker is done with the file.
            reader.close()
        if reader.is_changed:
            return False
        self._counts.files_read += 1
        self._counts.read_bytes += file.status.st_size
        self._counts.hole_bytes += file.status.st_size - place.size_bytes
        file.place = place
        return True

    def _bound_span(self) -> None:
        """Cut the packs that began too many paths before this one, after whatever else belongs into them."""
        oldest = self._number - MAX_SPAN
        if self._batch and self._batch[0].number <= oldest:
            self._submit_batch()
        if self._packing.objects.packer.began_before(oldest):
            self._collect_all()
            self._packing.objects.packer.cut_before(self._number)
        self._packing.chunks.packer.cut_before(self._number)

    def _drain(self, wait_above: int) -> Iterator[Record]:
        """The records at the front of the queue that are finished; waits for more while it is longer than that."""
        queue = self._queue
        while queue:
            head = queue[0]
            if isinstance(head, Record):
                yield head
            elif isinstance(head, Run):
                self._cache.put(head.path, head.number, head.remembered(), is_last=head.is_last)
            else:
                record = self._resolve(head, wait=len(queue) > wait_above)
                if record is None:
                    return
                self._count(record.entry)
                yield record
            queue.popleft()

    def _resolve(self, file: Unread, *, wait: bool) -> Record | None:
        first = file.same or file
        if wait:
            self._wait_for(first)
        content = None if first.place is None or first.entry is None else first.place.resolve(first.entry)
        if content is None or first.entry is None:
            return None
        if file is not first:
            file.entry, file.seen_ns = replace(first.entry, name=file.name), first.seen_ns
        return Record(file.directory, file.entry or first.entry, content)

    def _wait_for(self, file: Unread) -> None:
        while file.place is None:
            if self._reading:
                self._collect()
            else:
                self._submit_batch()
        while (pack := file.place.unfinished) is not None:
            if not self._packing.wait_for(pack):
                return
