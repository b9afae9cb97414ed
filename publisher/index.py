"""What this host remembers of a store, in LMDB: where contents are, which pages exist, what files looked like.

All of it is a cache. Where contents are can be learned again from the pages of a revision (`publisher.history`), the
rest by reading the tree again. One write transaction spans a publish; nothing is kept of one that fails.
"""

import fcntl
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import lmdb
import msgspec

from cvfs.errors import StoreError
from cvfs.format.codec import decoder_of, encode
from cvfs.model import BlobRef, Content, Digest

_VERSION = b"1"
"""Of the layout below. A directory of another version is thrown away."""

_MAP_BYTES = 1 << 38
"""Address space, not memory or disk."""

_MAX_HELD = 50_000
"""Pieces put at once; 10 MB of memory."""

_NAMES = (b"meta", b"objects", b"large", b"chunks", b"packs", b"numbers", b"pages", b"files")
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


class Blobs:
    """Which blobs are in the store. It is asked once for each, and blobs are numbered to be named in four bytes."""

    def __init__(self, transaction: lmdb.Transaction, tables: "_Tables", has_blob: HasBlob) -> None:
        self._transaction = transaction
        self._packs, self._numbers = tables[b"packs"], tables[b"numbers"]
        self._has_blob = has_blob
        self._present: dict[BlobRef, bool] = {}
        self._by_number: dict[int, BlobRef | None] = {}
        self._number_of: dict[BlobRef, int] = {}
        self._count: int = transaction.stat(self._packs)["entries"]

    def is_present(self, blob: BlobRef) -> bool:
        present = self._present.get(blob)
        if present is None:
            present = self._present[blob] = self._has_blob(blob)
        return present

    def add(self, blob: BlobRef) -> None:
        """Take note that a blob has been put into the store."""
        self._present[blob] = True

    def find(self, number: int) -> BlobRef | None:
        """The pack of a number, if it is in the store."""
        if number not in self._by_number:
            value = self._transaction.get(_NUMBER.pack(number), db=self._packs)
            pack = None if value is None else _REF.decode(value)
            self._by_number[number] = pack if pack is not None and self.is_present(pack) else None
        return self._by_number[number]

    def number(self, pack: BlobRef) -> int:
        number = self._number_of.get(pack)
        if number is None:
            number = self._number_of[pack] = self._find_number(pack)
        return number

    def _find_number(self, pack: BlobRef) -> int:
        value = self._transaction.get(pack.id, db=self._numbers)
        if value is not None:
            return int(_NUMBER.unpack(value)[0])
        number, self._count = self._count, self._count + 1
        self._transaction.put(pack.id, _NUMBER.pack(number), db=self._numbers)
        self._transaction.put(_NUMBER.pack(number), encode(pack), db=self._packs)
        self._by_number.pop(number, None)
        return number


class Pieces:
    """Where contents are: objects, or chunks, by their ids.

    New ones are held back and put in batches, in order. A table that is empty is not asked: each call into LMDB lets
    other threads have the interpreter, and has to wait for it to come back.
    """

    def __init__(self, transaction: lmdb.Transaction, table: lmdb._Database, blobs: Blobs) -> None:
        self._transaction = transaction
        self._table = table
        self._blobs = blobs
        self._held: dict[bytes, bytes] = {}
        self._is_empty = not transaction.stat(table)["entries"]

    def find(self, content_id: bytes) -> Piece | None:
        """None if it is not known, or its pack is not in the store."""
        value: bytes | memoryview | None = self._held.get(content_id)
        if value is None and not self._is_empty:
            value = self._transaction.get(content_id, db=self._table)
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
            with self._transaction.cursor(self._table) as cursor:
                cursor.putmulti(sorted(self._held.items()))
            self._held, self._is_empty = {}, False


class Index:
    """The index within its transaction. Nothing that relies on a blob which is not in the store is ever answered."""

    def __init__(self, transaction: lmdb.Transaction, tables: "_Tables", has_blob: HasBlob) -> None:
        self._transaction = transaction
        self._meta, self._large = tables[b"meta"], tables[b"large"]
        self._pages, self._files = tables[b"pages"], tables[b"files"]
        self.blobs = Blobs(transaction, tables, has_blob)
        self.objects = Pieces(transaction, tables[b"objects"], self.blobs)
        self.chunks = Pieces(transaction, tables[b"chunks"], self.blobs)

    def flush(self) -> None:
        """Put what was held back. To be called last."""
        self.objects.flush()
        self.chunks.flush()

    def find_large(self, content_id: bytes) -> Content | None:
        """Where the chunks of a large object are. What is behind its location pages is for the caller to check."""
        value = self._transaction.get(content_id, db=self._large)
        if value is None:
            return None
        content: Content = _CONTENT.decode(value)
        blobs = [location.pack for location in content.locations] + [page for _, page in content.location_pages]
        return content if all(map(self.blobs.is_present, blobs)) else None

    def add_large(self, content_id: bytes, content: Content) -> None:
        self._transaction.put(content_id, encode(content), db=self._large)

    def find_page(self, plain_id: Digest) -> BlobRef | None:
        """The blob of a page, by the BLAKE3 of its plain bytes."""
        value = self._transaction.get(plain_id, db=self._pages)
        if value is None:
            return None
        ref: BlobRef = _REF.decode(value)
        return ref if self.blobs.is_present(ref) else None

    def add_page(self, plain_id: Digest, ref: BlobRef) -> None:
        self._transaction.put(plain_id, encode(ref), db=self._pages)

    def find_files(self, key: bytes) -> bytes | None:
        """What the stat cache keeps under `key`."""
        value = self._transaction.get(key, db=self._files)
        return None if value is None else bytes(value)

    def put_files(self, key: bytes, value: bytes) -> None:
        self._transaction.put(key, value, db=self._files)

    def drop_files(self, key: bytes) -> bool:
        return bool(self._transaction.delete(key, db=self._files))

    @property
    def covered(self) -> tuple[BlobRef, int] | None:
        """The root page and its level of the newest tree all of whose contents are in here."""
        value = self._transaction.get(b"covered", db=self._meta)
        return None if value is None else _ROOT.decode(value)

    def set_covered(self, root: BlobRef, level: int) -> None:
        self._transaction.put(b"covered", encode((root, level)), db=self._meta)


_Tables = dict[bytes, lmdb._Database]


@contextmanager
def open_index(directory: Path, has_blob: HasBlob, *, keep: bool = True) -> Iterator[Index]:
    """The index kept in `directory`, to one process at a time. What was put is kept if the block ends well and `keep`.

    A directory that is not an index, is damaged or of another version is emptied. Raises StoreError if it cannot be
    used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"cannot keep state in {directory}: {error.strerror} (choose with --state DIR)") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        environment = _open_or_reset(directory / "index")
        try:
            yield from _transact(environment, has_blob, keep)
        finally:
            environment.close()
    finally:
        os.close(lock)


def reset_index(directory: Path) -> None:
    """Throw away what is kept in `directory`."""
    shutil.rmtree(directory / "index", ignore_errors=True)


def _transact(environment: lmdb.Environment, has_blob: HasBlob, keep: bool) -> Iterator[Index]:
    tables = {name: environment.open_db(name) for name in _NAMES}
    transaction = environment.begin(write=True)
    try:
        index = Index(transaction, tables, has_blob)
        yield index
        if keep:
            with suppress(lmdb.Error):  # A full disk, say: the next publish will only be slower.
                index.flush()
                transaction.commit()
    finally:
        transaction.abort()  # Does nothing after a commit.


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
            if transaction.get(b"version", _VERSION) != _VERSION:
                raise lmdb.VersionMismatchError("another layout")
            transaction.put(b"version", _VERSION)
    except BaseException:
        environment.close()
        raise
    return environment
