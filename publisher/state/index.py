"""What this host remembers of a store, in LMDB: where contents are, which pages exist, what files looked like.

All of it is a cache. Where contents are can be learned again from the pages of a revision (`index_update`), the rest by
reading the tree again. Whatever is put here is true on its own, and every answer is held against the store, so what a
publish has put is kept every now and then, and also if it fails: the next one does not begin at nothing.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvfs.errors import StoreError
from cvfs.format.codec import decoder_of, encode
from cvfs.model import BlobRef, Content, Digest
from publisher.locking import Waiting, lock_file
from publisher.state.database import BROKEN, DatabaseError, Tables, open_tables
from publisher.state.directory import make_state_directory
from publisher.state.pieces import HasBlob, KnownBlobs, Pieces

_SAVE_S = 60.0
"""How much work a kill may cost. A save takes one write to the disk."""

_REF = decoder_of(BlobRef)
_CONTENT = decoder_of(Content)
_ROOT = decoder_of(tuple[BlobRef, int])


class Index:
    """The index, open. Nothing that relies on a blob which is not in the store is ever answered."""

    def __init__(self, tables: Tables, has_blob: HasBlob, *, keep: bool) -> None:
        self._tables = tables
        self._keep = keep
        self._saved_s = time.monotonic()
        self.blobs = KnownBlobs(tables, has_blob)
        self.objects = Pieces(tables, b"objects", self.blobs)
        self.chunks = Pieces(tables, b"chunks", self.blobs)

    def save_seldom(self) -> None:
        """Save, unless that was done lately. To be called often."""
        if time.monotonic() - self._saved_s >= _SAVE_S:
            self.save()

    def save(self) -> None:
        """Keep what was put, if it is to be kept. If that fails, the disk being full, say, the next publish will only
        be slower."""
        self._saved_s = time.monotonic()
        if not self._keep:
            return
        try:
            self.objects.flush()
            self.chunks.flush()
            self._tables.commit()
        except DatabaseError:
            self._tables.abort()
            for part in (self.blobs, self.objects, self.chunks):
                part.forget()

    def find_large(self, content_id: bytes) -> Content | None:
        """Where the chunks of a large object are. What is behind its location pages is for the caller to check."""
        value = self._tables.get(b"large", content_id)
        if value is None:
            return None
        content: Content = _CONTENT.decode(value)
        blobs = [location.pack for location in content.locations] + [page for _, page in content.location_pages]
        return content if all(map(self.blobs.is_present, blobs)) else None

    def add_large(self, content_id: bytes, content: Content) -> None:
        self._tables.put(b"large", content_id, encode(content))

    def find_page(self, plain_id: Digest) -> BlobRef | None:
        """The blob of a page, by the BLAKE3 of its plain bytes."""
        value = self._tables.get(b"pages", plain_id)
        if value is None:
            return None
        ref: BlobRef = _REF.decode(value)
        return ref if self.blobs.is_present(ref) else None

    def add_page(self, plain_id: Digest, ref: BlobRef) -> None:
        self._tables.put(b"pages", plain_id, encode(ref))

    def find_files(self, key: bytes) -> bytes | None:
        """What the stat cache keeps under `key`."""
        value = self._tables.get(b"files", key)
        return None if value is None else bytes(value)

    def put_files(self, key: bytes, value: bytes) -> None:
        self._tables.put(b"files", key, value)

    def drop_files(self, key: bytes) -> bool:
        return self._tables.delete(b"files", key)

    def trees(self) -> list[tuple[bytes, bytes]]:
        """The trees that files are kept of: keys, and what was put of them."""
        return self._tables.items(b"trees")

    def find_tree(self, key: bytes) -> bytes | None:
        value = self._tables.get(b"trees", key)
        return None if value is None else bytes(value)

    def put_tree(self, key: bytes, value: bytes) -> None:
        self._tables.put(b"trees", key, value)

    def drop_tree(self, key: bytes) -> None:
        """Forget a tree, and its files: what is kept under keys that begin with its key."""
        self._tables.delete_below(b"files", key)
        self._tables.delete(b"trees", key)

    @property
    def covered(self) -> tuple[BlobRef, int] | None:
        """The root page and its level of the newest tree all of whose contents are in here."""
        value = self._tables.get(b"meta", b"covered")
        return None if value is None else _ROOT.decode(value)

    def set_covered(self, root: BlobRef, level: int) -> None:
        self._tables.put(b"meta", b"covered", encode((root, level)))


@contextmanager
def open_index(directory: Path, has_blob: HasBlob, waiting: Waiting | None, *, keep: bool = True) -> Iterator[Index]:
    """The index kept in `directory`, to one process at a time. What was put is kept if `keep`, unless it is damaged.

    If another process has it, call `waiting` and wait; without `waiting`, raise StoreError. A directory that is not an
    index, is damaged or of another version is emptied. Raises StoreError if it cannot be used.
    """
    lock = _lock(directory, waiting)
    try:
        with open_tables(directory / "index") as tables:
            yield from _with_index(tables, has_blob, keep)
    finally:
        os.close(lock)


def reset_index(directory: Path) -> None:
    """Throw away what is kept in `directory`."""
    shutil.rmtree(directory / "index", ignore_errors=True)


def _lock(directory: Path, waiting: Waiting | None) -> int:
    """The descriptor to close when others may have the index."""
    try:
        make_state_directory(directory)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock_file(lock, waiting, f"another publisher uses the state in {directory} (choose another with --state)")
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise StoreError(f"cannot keep state in {directory}: {error.strerror} (choose with --state DIR)") from error
    return lock


def _with_index(tables: Tables, has_blob: HasBlob, keep: bool) -> Iterator[Index]:
    index = Index(tables, has_blob, keep=keep)
    try:
        yield index
    except BROKEN:
        raise
    except BaseException:
        index.save()
        raise
    index.save()
