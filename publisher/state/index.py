"""What this host remembers of a store, in LMDB: where contents are, which pages exist, what files looked like.

All of it is a cache. Where contents are can be learned again from the pages of a revision (`index_update`), the rest by
reading the tree again. Whatever is put here is true on its own, and every answer is held against the store, so what a
publish has put is kept every now and then, and also if it fails: the next one does not begin at nothing.
"""

import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import lmdb
import msgspec

from cvfs.errors import StoreError
from cvfs.format.codec import decoder_of, encode
from cvfs.model import BlobRef, Content, Digest
from publisher.locking import Waiting, lock_file

_VERSION = b"2"
"""Of the layout below. A directory of another version is thrown away."""

_MAP_BYTES = 1 << 38
"""Address space, not memory or disk."""

_MAX_HELD = 50_000
"""Pieces put at once; 10 MB of memory."""

_SAVE_S = 60.0
"""How much work a kill may cost. A save takes one write to the disk."""

_NAMES = (b"meta", b"objects", b"large", b"chunks", b"packs", b"numbers", b"pages", b"files", b"trees")
_PIECE = struct.Struct("<III")
_NUMBER = struct.Struct("<I")
_REF = decoder_of(BlobRef)
_CONTENT = decoder_of(Content)
_ROOT = decoder_of(tuple[BlobRef, int])

BROKEN = (lmdb.Error, msgspec.DecodeError, struct.error)
"""What a damaged index raises. It is to be thrown away."""


class Piece(NamedTuple):
    """`length` plain bytes at `offset` of `pack`."""

    pack: BlobRef
    offset: int
    length: int


HasBlob = Callable[[BlobRef], bool]


class _Session:
    """The tables, within the present write transaction."""

    def __init__(self, environment: lmdb.Environment) -> None:
        self._environment = environment
        self._tables = {name: environment.open_db(name) for name in _NAMES}
        self._transaction = environment.begin(write=True)

    def get(self, table: bytes, key: bytes) -> bytes | memoryview | None:
        value: bytes | memoryview | None = self._transaction.get(key, db=self._tables[table])
        return value

    def put(self, table: bytes, key: bytes, value: bytes) -> None:
        self._transaction.put(key, value, db=self._tables[table])

    def put_sorted(self, table: bytes, items: list[tuple[bytes, bytes]]) -> None:
        with self._transaction.cursor(self._tables[table]) as cursor:
            cursor.putmulti(items)

    def delete(self, table: bytes, key: bytes) -> bool:
        return bool(self._transaction.delete(key, db=self._tables[table]))

    def items(self, table: bytes) -> list[tuple[bytes, bytes]]:
        with self._transaction.cursor(self._tables[table]) as cursor:
            return [(bytes(key), bytes(value)) for key, value in cursor]

    def delete_below(self, table: bytes, prefix: bytes) -> None:
        """Delete all whose keys begin with `prefix`."""
        with self._transaction.cursor(self._tables[table]) as cursor:
            cursor.set_range(prefix)
            while bytes(cursor.key()[: len(prefix)]) == prefix:
                cursor.delete()  # and go on to the next

    def count(self, table: bytes) -> int:
        entries: int = self._transaction.stat(self._tables[table])["entries"]
        return entries

    def commit(self) -> None:
        """Keep what was put, and begin anew. Raises lmdb.Error: nothing was kept, and `abort` is to be called."""
        self._transaction.commit()
        self._transaction = self._environment.begin(write=True)

    def abort(self) -> None:
        """Forget what was put since the last commit, and begin anew."""
        self._transaction.abort()
        self._transaction = self._environment.begin(write=True)

    def close(self) -> None:
        self._transaction.abort()  # Does nothing after a commit.


class Blobs:
    """Which blobs are in the store. It is asked once for each, and blobs are numbered to be named in four bytes."""

    def __init__(self, session: _Session, has_blob: HasBlob) -> None:
        self._session = session
        self._has_blob = has_blob
        self._present: dict[BlobRef, bool] = {}
        self._by_number: dict[int, BlobRef | None] = {}
        self._number_of: dict[BlobRef, int] = {}
        self._count = session.count(b"packs")
        self.missing: set[BlobRef] = set()
        """Those that were asked for, and are not there."""

    def is_present(self, blob: BlobRef) -> bool:
        present = self._present.get(blob)
        if present is None:
            present = self._present[blob] = self._has_blob(blob)
            if not present:
                self.missing.add(blob)
        return present

    def add(self, blob: BlobRef) -> None:
        """Take note that a blob has been put into the store."""
        if self._present.get(blob) is False:
            self.missing.discard(blob)
            self._by_number.pop(self.number(blob), None)
        self._present[blob] = True

    def forget(self) -> None:
        """The session was aborted: numbers given since the last commit mean nothing."""
        self._by_number.clear()
        self._number_of.clear()
        self._count = self._session.count(b"packs")

    def find(self, number: int) -> BlobRef | None:
        """The pack of a number, if it is in the store."""
        if number not in self._by_number:
            value = self._session.get(b"packs", _NUMBER.pack(number))
            pack = None if value is None else _REF.decode(value)
            self._by_number[number] = pack if pack is not None and self.is_present(pack) else None
        return self._by_number[number]

    def number(self, pack: BlobRef) -> int:
        number = self._number_of.get(pack)
        if number is None:
            number = self._number_of[pack] = self._find_number(pack)
        return number

    def _find_number(self, pack: BlobRef) -> int:
        value = self._session.get(b"numbers", pack.id)
        if value is not None:
            return int(_NUMBER.unpack(value)[0])
        number, self._count = self._count, self._count + 1
        self._session.put(b"numbers", pack.id, _NUMBER.pack(number))
        self._session.put(b"packs", _NUMBER.pack(number), encode(pack))
        self._by_number.pop(number, None)
        return number


class Pieces:
    """Where contents are: objects, or chunks, by their ids.

    New ones are held back and put in batches, in order. A table that is empty is not asked: each call into LMDB lets
    other threads have the interpreter, and has to wait for it to come back.
    """

    def __init__(self, session: _Session, table: bytes, blobs: Blobs) -> None:
        self._session = session
        self._table = table
        self._blobs = blobs
        self._held: dict[bytes, bytes] = {}
        self._is_empty = not session.count(table)

    def find(self, content_id: bytes) -> Piece | None:
        """None if it is not known, or its pack is not in the store."""
        value: bytes | memoryview | None = self._held.get(content_id)
        if value is None and not self._is_empty:
            value = self._session.get(self._table, content_id)
        if value is None:
            return None
        number, offset, length = _PIECE.unpack(value)
        pack = self._blobs.find(number)
        return None if pack is None else Piece(pack, offset, length)

    def add(self, content_id: bytes, piece: Piece) -> None:
        self._held[content_id] = _PIECE.pack(self._blobs.number(piece.pack), piece.offset, piece.length)
        if len(self._held) >= _MAX_HELD:
            self.flush()

    def flush(self) -> None:
        """Put what was held back."""
        if self._held:
            self._session.put_sorted(self._table, sorted(self._held.items()))
            self._held, self._is_empty = {}, False

    def forget(self) -> None:
        """The session was aborted: what was added since the last commit has gone."""
        self._held, self._is_empty = {}, not self._session.count(self._table)


class Index:
    """The index, open. Nothing that relies on a blob which is not in the store is ever answered."""

    def __init__(self, session: _Session, has_blob: HasBlob, *, keep: bool) -> None:
        self._session = session
        self._keep = keep
        self._saved_s = time.monotonic()
        self.blobs = Blobs(session, has_blob)
        self.objects = Pieces(session, b"objects", self.blobs)
        self.chunks = Pieces(session, b"chunks", self.blobs)

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
            self._session.commit()
        except lmdb.Error:
            self._session.abort()
            for part in (self.blobs, self.objects, self.chunks):
                part.forget()

    def find_large(self, content_id: bytes) -> Content | None:
        """Where the chunks of a large object are. What is behind its location pages is for the caller to check."""
        value = self._session.get(b"large", content_id)
        if value is None:
            return None
        content: Content = _CONTENT.decode(value)
        blobs = [location.pack for location in content.locations] + [page for _, page in content.location_pages]
        return content if all(map(self.blobs.is_present, blobs)) else None

    def add_large(self, content_id: bytes, content: Content) -> None:
        self._session.put(b"large", content_id, encode(content))

    def find_page(self, plain_id: Digest) -> BlobRef | None:
        """The blob of a page, by the BLAKE3 of its plain bytes."""
        value = self._session.get(b"pages", plain_id)
        if value is None:
            return None
        ref: BlobRef = _REF.decode(value)
        return ref if self.blobs.is_present(ref) else None

    def add_page(self, plain_id: Digest, ref: BlobRef) -> None:
        self._session.put(b"pages", plain_id, encode(ref))

    def find_files(self, key: bytes) -> bytes | None:
        """What the stat cache keeps under `key`."""
        value = self._session.get(b"files", key)
        return None if value is None else bytes(value)

    def put_files(self, key: bytes, value: bytes) -> None:
        self._session.put(b"files", key, value)

    def drop_files(self, key: bytes) -> bool:
        return self._session.delete(b"files", key)

    def trees(self) -> list[tuple[bytes, bytes]]:
        """The trees that files are kept of: keys, and what was put of them."""
        return self._session.items(b"trees")

    def find_tree(self, key: bytes) -> bytes | None:
        value = self._session.get(b"trees", key)
        return None if value is None else bytes(value)

    def put_tree(self, key: bytes, value: bytes) -> None:
        self._session.put(b"trees", key, value)

    def drop_tree(self, key: bytes) -> None:
        """Forget a tree, and its files: what is kept under keys that begin with its key."""
        self._session.delete_below(b"files", key)
        self._session.delete(b"trees", key)

    @property
    def covered(self) -> tuple[BlobRef, int] | None:
        """The root page and its level of the newest tree all of whose contents are in here."""
        value = self._session.get(b"meta", b"covered")
        return None if value is None else _ROOT.decode(value)

    def set_covered(self, root: BlobRef, level: int) -> None:
        self._session.put(b"meta", b"covered", encode((root, level)))


@contextmanager
def open_index(directory: Path, has_blob: HasBlob, waiting: Waiting | None, *, keep: bool = True) -> Iterator[Index]:
    """The index kept in `directory`, to one process at a time. What was put is kept if `keep`, unless it is damaged.

    If another process has it, call `waiting` and wait; without `waiting`, raise StoreError. A directory that is not an
    index, is damaged or of another version is emptied. Raises StoreError if it cannot be used.
    """
    lock = _lock(directory, waiting)
    try:
        environment = _open_or_reset(directory / "index")
        try:
            yield from _in_session(environment, has_blob, keep)
        finally:
            environment.close()
    finally:
        os.close(lock)


def reset_index(directory: Path) -> None:
    """Throw away what is kept in `directory`."""
    shutil.rmtree(directory / "index", ignore_errors=True)


def _lock(directory: Path, waiting: Waiting | None) -> int:
    """The descriptor to close when others may have the index."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock_file(lock, waiting, f"another publisher uses the state in {directory} (choose another with --state)")
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise StoreError(f"cannot keep state in {directory}: {error.strerror} (choose with --state DIR)") from error
    return lock


def _in_session(environment: lmdb.Environment, has_blob: HasBlob, keep: bool) -> Iterator[Index]:
    session = _Session(environment)
    try:
        index = Index(session, has_blob, keep=keep)
        try:
            yield index
        except BROKEN:
            raise
        except BaseException:
            index.save()
            raise
        index.save()
    finally:
        session.close()


def _open_or_reset(path: Path) -> lmdb.Environment:
    try:
        return _open(path)
    except (*BROKEN, OSError):
        shutil.rmtree(path, ignore_errors=True)
    try:
        return _open(path)
    except (*BROKEN, OSError) as error:
        raise StoreError(f"cannot keep state in {path}: {error} (choose with --state DIR)") from error


def _open(path: Path) -> lmdb.Environment:
    environment = lmdb.open(str(path), map_size=_MAP_BYTES, max_dbs=len(_NAMES), metasync=False, readahead=False)
    try:
        info, page_bytes = environment.info(), environment.stat()["psize"]
        if (path / "data.mdb").stat().st_size < (info["last_pgno"] + 1) * page_bytes and info["last_pgno"] > 1:
            raise lmdb.CorruptedError("truncated")  # Reading beyond its end would be a SIGBUS.
        with environment.begin(write=True) as transaction:
            version = transaction.get(b"version")
            if version is None:
                transaction.put(b"version", _VERSION)
            elif version != _VERSION:
                raise lmdb.VersionMismatchError("another layout")
    except BaseException:
        environment.close()
        raise
    return environment
