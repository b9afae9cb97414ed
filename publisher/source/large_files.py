"""Large files: read in windows, cut into chunks by FastCDC, in a worker thread.

Cuts depend on nothing but the bytes. A grain, an aligned piece of GRAIN_BYTES, that is all zeros is a hole, whether the
file system stores it or not; what lies between two holes is cut by FastCDC from its beginning.
"""

import errno
import os
from collections.abc import Iterator

from blake3 import blake3
from pyfastcdc import FastCDC

from cvfs.format.blob import digest
from cvfs.limits import KIB, MIB
from cvfs.model import Digest
from publisher.packs.large_objects import Chunk
from publisher.source.entry import Xattrs, is_unchanged, read_xattrs
from publisher.source.scanned import Unread
from publisher.source.small_files import OPEN_FLAGS, finish
from publisher.source.tree import SourceTree
from publisher.state.stat_cache import wait_until_settled

GRAIN_BYTES = 256 * KIB
MIN_CHUNK_BYTES = GRAIN_BYTES
AVERAGE_CHUNK_BYTES = MIB
MAX_CHUNK_BYTES = 4 * MIB
_WINDOW_BYTES = 16 * MIB
_ZEROS = bytes(_WINDOW_BYTES)
_ZERO_GRAIN = bytes(GRAIN_BYTES)


class LargeReader:
    """Reads one large file. `step` is called until `is_done`, in whatever thread; memory use is bounded."""

    def __init__(self, source: SourceTree, file: Unread) -> None:
        """Raises PublishError if it cannot be opened."""
        self._source = source
        self._file = file
        file.seen_ns = wait_until_settled(file.status)
        try:
            self._descriptor = os.open(file.path, OPEN_FLAGS, dir_fd=source.descriptor)
        except OSError as error:
            raise source.error(file.path, error) from error
        try:
            source.check_file(self._descriptor, file.path)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._size = file.status.st_size
        self._hasher = blake3(max_threads=blake3.AUTO)
        self._cutter = FastCDC(avg_size=AVERAGE_CHUNK_BYTES, min_size=MIN_CHUNK_BYTES, max_size=MAX_CHUNK_BYTES)
        self._position = 0
        self._rest = b""
        self.is_done = False
        self.is_changed = False

    def close(self) -> None:
        os.close(self._descriptor)

    def step(self) -> list[Chunk]:
        """The chunks that the next window completes. The last step makes the entry, or finds `is_changed`."""
        try:
            chunks = self._step()
            if self._position == self._size and not self.is_changed:
                chunks += self._cut(final=True)
                self._finish()
        except OSError as error:
            raise self._source.error(self._file.path, error) from error
        self.is_done = self.is_changed or self._position == self._size
        return chunks

    def _step(self) -> list[Chunk]:
        data_start = self._next_data()
        if data_start > self._position:
            chunks = self._cut(final=True)
            self._skip_hole(data_start)
            return chunks
        window = os.pread(self._descriptor, min(_WINDOW_BYTES, self._size - self._position), self._position)
        if not window or (len(window) % GRAIN_BYTES and self._position + len(window) != self._size):
            self.is_changed, self._file.status = True, os.fstat(self._descriptor)
            return []
        self._hasher.update(window)
        return self._take(window)

    def _take(self, window: bytes) -> list[Chunk]:
        chunks: list[Chunk] = []
        for start, stop, is_hole in _runs(window):
            if is_hole:
                chunks += self._cut(final=True)
            else:
                self._rest = b"".join((self._rest, memoryview(window)[start:stop]))
            self._position += stop - start
        return chunks + self._cut(final=False)

    def _cut(self, *, final: bool) -> list[Chunk]:
        """The chunks of what has not been cut yet; unless `final`, only those that no further byte can change."""
        rest, chunks, taken = self._rest, [], 0
        if not rest or (not final and len(rest) < MAX_CHUNK_BYTES):
            return []
        offset = self._position - len(rest)
        for piece in self._cutter.cut_buf(rest):
            if not final and taken + MAX_CHUNK_BYTES > len(rest):
                break
            data = memoryview(rest)[taken : taken + len(piece.data)]
            if data[0] or data != bytes(len(data)):
                chunks.append(Chunk(offset + taken, data, digest(data)))
            taken += len(data)
        self._rest = rest[taken:]
        return chunks

    def _next_data(self) -> int:
        """Where the grain begins that holds the next byte that the file system stores."""
        try:
            data = os.lseek(self._descriptor, self._position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self._size
            if error.errno == errno.EINVAL:
                return self._position
            raise
        return min(max(data - data % GRAIN_BYTES, self._position), self._size)

    def _skip_hole(self, stop: int) -> None:
        for start in range(self._position, stop, _WINDOW_BYTES):
            self._hasher.update(memoryview(_ZEROS)[: stop - start])
        self._position = stop

    def _finish(self) -> None:
        xattrs: Xattrs = read_xattrs(self._descriptor)
        before, self._file.status = self._file.status, os.fstat(self._descriptor)
        if is_unchanged(before, self._file.status):
            finish(self._source, self._file, Digest(self._hasher.digest()), xattrs)
        else:
            self.is_changed = True


def _runs(window: bytes) -> Iterator[tuple[int, int, bool]]:
    """The window's maximal runs of grains that are all holes, or none: (start, stop, is_hole)."""
    start, was_hole = 0, _is_hole(window, 0)
    for position in range(GRAIN_BYTES, len(window), GRAIN_BYTES):
        is_hole = _is_hole(window, position)
        if is_hole != was_hole:
            yield start, position, was_hole
            start, was_hole = position, is_hole
    yield start, len(window), was_hole


def _is_hole(window: bytes, position: int) -> bool:
    if window[position]:
        return False
    grain = window[position : position + GRAIN_BYTES]
    return grain == _ZERO_GRAIN or grain == _ZERO_GRAIN[: len(grain)]
