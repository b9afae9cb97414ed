"""Reading small files, a batch at a time."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from typing import NamedTuple

from cvfs.format.blob import digest
from cvfs.limits import KIB
from cvfs.model import Digest
from publisher.packs.pack import MAX_SMALL_BYTES
from publisher.source.entry import is_unchanged, read_xattrs
from publisher.source.scanned import Unread
from publisher.source.tree import SourceTree
from publisher.state.stat_cache import wait_until_settled

OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
"""Should a file have been replaced since it was scanned: follow no link, wait for no fifo."""

_SLOW_S = 200e-6
"""Waited for a file, or for 64 KiB, on average: slower than from memory even on a busy machine, faster than disks."""

_BATCHES_IN_THREADS = 64
"""After a slow batch; then one is tried here again."""


class Plain(NamedTuple):
    data: bytes
    content_id: Digest


class BatchReader:
    """Reads batches here, in the calling thread, as long as files come at once; in threads while they do not.

    From memory, threads read no faster: five system calls a file, and after each a thread has to wait until the others
    let it have the interpreter again. 50,000 small files took 3.4 s instead of 5.1 s.
    """

    def __init__(self, source: SourceTree, executor: Executor) -> None:
        self._source = source
        self._executor = executor
        self._in_threads = 0

    def submit(self, files: Sequence[Unread]) -> Future[list[Plain]]:
        """What `read_batch` returns, or will. Raises what it raises, unless the future does."""
        if self._in_threads:
            self._in_threads -= 1
            return self._executor.submit(read_batch, self._source, files)
        waited_s = time.thread_time() - time.perf_counter()
        future: Future[list[Plain]] = Future()
        future.set_result(read_batch(self._source, files))
        waited_s += time.perf_counter() - time.thread_time()
        size_bytes = sum(file.status.st_size for file in files)
        if waited_s > _SLOW_S * (len(files) + size_bytes / (64 * KIB)):
            self._in_threads = _BATCHES_IN_THREADS
        return future


def read_batch(source: SourceTree, files: Sequence[Unread]) -> list[Plain]:
    """Read each file and make its entry. Raises PublishError for the first that cannot be read, or changes."""
    return [_read(source, file) for file in files]


def _read(source: SourceTree, file: Unread) -> Plain:
    """A file that changes meanwhile gets a second chance."""
    data = _read_once(source, file)
    if data is None:
        data = _read_once(source, file)
    if data is None:
        raise source.changed(file.path)
    return data


def _read_once(source: SourceTree, file: Unread) -> Plain | None:
    """None if the file is not what `file.status` says, which is then brought up to date."""
    file.seen_ns = wait_until_settled(file.status)
    try:
        descriptor = os.open(file.path, OPEN_FLAGS, dir_fd=source.descriptor)
        try:
            before, size = file.status, file.status.st_size
            data = _read_whole(descriptor, min(size, MAX_SMALL_BYTES))
            xattrs = read_xattrs(descriptor)
            file.status = os.fstat(descriptor)
            if not is_unchanged(before, file.status):
                source.check_file(descriptor, file.path)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise source.error(file.path, error) from error
    if len(data) != size or not is_unchanged(before, file.status):
        return None
    content_id = digest(data)
    finish(source, file, content_id, xattrs)
    return Plain(data, content_id)


def _read_whole(descriptor: int, size: int) -> bytes:
    """`size` bytes, and one more if there is; or what there is. Some file systems give less at a time."""
    data = os.read(descriptor, size + 1)
    while len(data) < size and (more := os.read(descriptor, size + 1 - len(data))):
        data += more
    return data


def finish(source: SourceTree, file: Unread, content_id: Digest, xattrs: tuple[tuple[bytes, bytes], ...]) -> None:
    """Make the entry of a file that has been read."""
    entry = source.entry(file.path, file.name, file.status, xattrs, content_id=content_id)
    file.entry = entry if file.group is None else file.group.apply(entry)
