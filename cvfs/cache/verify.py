"""Hashes everything in the cache, and removes what is not what its name says. Readers would find it out themselves,
one by one; this is for whoever wants to know now, or suspects a disk.

Objects, packs and pages are named by their hashes. A large file is held against the lists of chunks in the pages that
are in the cache; one that no page speaks of is left alone.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import zstandard

from cvfs.cache.cache import Cache
from cvfs.cache.directory import as_cache_error
from cvfs.cache.files import remove
from cvfs.cache.large import recipe_of
from cvfs.cache.shards import CachedFile, list_all
from cvfs.errors import CacheError, FormatError, IntegrityError
from cvfs.format.blob import digest, unseal
from cvfs.format.locations import resolve
from cvfs.format.pages import Leaf, LocationPage, Page, decode_page
from cvfs.limits import MAX_BLOB_BYTES, MAX_PAGE_BYTES
from cvfs.model import BlobRef, Content, Digest, Location

T = TypeVar("T")

THREADS = 8
"""Reading small files waits for the disk; hashing and reading let go of the interpreter."""

_MAX_AHEAD = 256
_GONE = (FileNotFoundError, BlockingIOError)
"""What opening a file is answered with that was evicted, or is being looked at for that."""

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(slots=True)
class Verified:
    """What was found: files that were looked at, and those that were wrong and are removed; chunks of large files that
    were wrong and are blanked out; large files of which nothing is known. `size_bytes` are those that were hashed, or
    on the disk where there was nothing to hash."""

    files: int = 0
    size_bytes: int = 0
    removed: int = 0
    blanked_chunks: int = 0
    unknown: int = 0

    @property
    def is_sound(self) -> bool:
        return not (self.removed or self.blanked_chunks)


Report = Callable[[int, int], None]
"""Called with the files and the bytes that are done, from any thread."""


class Verifier:
    """One look through a cache. Files that come or go meanwhile are no harm."""

    def __init__(self, cache: Cache, report: Report) -> None:
        self._cache, self._report = cache, report
        self._lock = threading.Lock()
        self.result = Verified()

    def run(self) -> Verified:
        """Look at everything, in several threads."""
        path = self._cache.directory.path
        for kind in ("blobs", "packs", "objects"):
            _in_parallel(self._check_file, list_all(path, kind))
        large = {file.name: file for file in list_all(path, "large")}
        if large:
            self._check_large(large)
        if not self.result.is_sound:
            self._cache.quota.recount()
        return self.result

    def _check_file(self, file: CachedFile) -> None:
        try:
            data = _read(file)
        except _GONE:
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise _unreadable(file, error) from error
            data = b""  # a bad sector
        is_right = len(data) == file.size_bytes and digest(data) == file.name
        if not is_right:
            remove(file.path)
        self._done(1, file.disk_bytes, removed=not is_right)

    def _check_large(self, large: dict[Digest, CachedFile]) -> None:
        """Page by page: an object may be in many, and is looked at once."""
        for page in self._pages():
            for recipe, content in _large_objects(page):
                file = large.pop(recipe, None)
                if file is not None:
                    _in_parallel(partial(self._check_chunk, file), self._chunks(content))
                    self._done(1)
        for file in large.values():
            self._done(1, file.disk_bytes)
        self.result.unknown += len(large)

    def _pages(self) -> Iterator[Page]:
        for file in list_all(self._cache.directory.path, "blobs"):
            try:
                stored = _read(file)
                yield _decode(stored)
            except (OSError, FormatError, IntegrityError):
                continue  # a manifest, or gone

    def _chunks(self, content: Content) -> Iterator[Location]:
        yield from content.locations
        for _, ref in content.location_pages:
            stored = self._cache.blobs.load(ref.id, ref.stored_size)
            page = None if stored is None else decode_page(unseal(ref, stored, "the cache"))
            if isinstance(page, LocationPage):
                yield from page.locations

    def _check_chunk(self, file: CachedFile, location: Location) -> None:
        try:
            is_damaged = _is_damaged(file, location) and self._blank(file, location)
        except _GONE:
            return
        except OSError as error:
            raise _unreadable(file, error) from error
        self._done(0, location.length, blanked=is_damaged)

    def _blank(self, file: CachedFile, location: Location) -> bool:
        """Overwrite a chunk that is damaged, unless it was just being written; whether it was damaged."""
        with self._cache.quota.ledger.nobody_storing():
            is_damaged = _is_damaged(file, location)
            if is_damaged:
                fd = os.open(file.path, _FLAGS | os.O_WRONLY)
                try:
                    os.pwrite(fd, bytes(location.length), location.object_offset)
                finally:
                    os.close(fd)
        return is_damaged

    def _done(self, files: int, size_bytes: int = 0, *, removed: bool = False, blanked: bool = False) -> None:
        with self._lock:
            self.result.files += files
            self.result.size_bytes += size_bytes
            self.result.removed += removed
            self.result.blanked_chunks += blanked
            self._report(self.result.files, self.result.size_bytes)


def _in_parallel(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Call `work` with each of `items`, of which there may be very many."""
    room = threading.BoundedSemaphore(_MAX_AHEAD)
    failures: list[BaseException] = []

    def one(item: T) -> None:
        try:
            work(item)
        except Exception as error:  # noqa: BLE001 (raised below)
            failures.append(error)
        finally:
            room.release()

    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            room.acquire()
            pool.submit(one, item)
    if failures:
        raise failures[0]


def _read(file: CachedFile) -> bytes:
    """At most what a blob or object may have: a file that is larger is wrong."""
    fd = os.open(file.path, _FLAGS | os.O_RDONLY)
    try:
        return os.read(fd, min(file.size_bytes, MAX_BLOB_BYTES) + 1)
    finally:
        os.close(fd)


def _is_damaged(file: CachedFile, location: Location) -> bool:
    """Whether there is something else where a chunk belongs. A bad sector is: writing may mend it."""
    fd = os.open(file.path, _FLAGS | os.O_RDONLY)
    try:
        data = os.pread(fd, location.length, location.object_offset)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return True
    finally:
        os.close(fd)
    return digest(data) != location.chunk_id and bool(data.strip(b"\0"))


def _unreadable(file: CachedFile, error: OSError) -> CacheError:
    """That a file could not be looked at says nothing of it."""
    return as_cache_error(f"cannot read {os.fsdecode(file.path)}", error)


def _decode(stored: bytes) -> Page:
    """A page of which only the stored bytes are known. Raises FormatError."""
    plain_size = zstandard.frame_content_size(stored) if stored.startswith(_ZSTD_MAGIC) else len(stored)
    if not 0 < plain_size <= MAX_PAGE_BYTES:
        raise FormatError(f"a page of {plain_size} bytes")
    return decode_page(unseal(BlobRef(digest(stored), len(stored), plain_size), stored, "the cache"))


def _large_objects(page: Page) -> Iterator[tuple[Digest, Content]]:
    """The chunked objects that a page lists, by recipe."""
    if not isinstance(page, Leaf):
        return
    for group in page.groups:
        for entry, wire in zip(group.entries, group.contents, strict=True):
            if wire is not None and (wire.location_pages or any(each.chunk_id for each in wire.locations)):
                content = resolve(wire, page.packs)
                yield recipe_of(entry, content), content
