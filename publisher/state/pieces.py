"""Where contents are: objects and chunks by their ids, and the packs of the store that they are in."""

import struct
from collections.abc import Callable
from typing import NamedTuple

from cvfs.format.codec import decoder_of, encode
from cvfs.model import BlobRef
from publisher.state.database import Tables

_MAX_HELD = 50_000
"""Pieces put at once; 10 MB of memory."""

_PIECE = struct.Struct("<III")
_NUMBER = struct.Struct("<I")
_REF = decoder_of(BlobRef)

HasBlob = Callable[[BlobRef], bool]


class Piece(NamedTuple):
    """`length` plain bytes at `offset` of `pack`."""

    pack: BlobRef
    offset: int
    length: int


class KnownBlobs:
    """Which blobs are in the store. It is asked once for each, and blobs are numbered to be named in four bytes."""

    def __init__(self, tables: Tables, has_blob: HasBlob) -> None:
        self._tables = tables
        self._has_blob = has_blob
        self._present: dict[BlobRef, bool] = {}
        self._by_number: dict[int, BlobRef | None] = {}
        self._number_of: dict[BlobRef, int] = {}
        self._count = tables.count(b"packs")
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
        """The transaction was aborted: numbers given since the last commit mean nothing."""
        self._by_number.clear()
        self._number_of.clear()
        self._count = self._tables.count(b"packs")

    def find(self, number: int) -> BlobRef | None:
        """The pack of a number, if it is in the store."""
        if number not in self._by_number:
            value = self._tables.get(b"packs", _NUMBER.pack(number))
            pack = None if value is None else _REF.decode(value)
            self._by_number[number] = pack if pack is not None and self.is_present(pack) else None
        return self._by_number[number]

    def number(self, pack: BlobRef) -> int:
        number = self._number_of.get(pack)
        if number is None:
            number = self._number_of[pack] = self._find_number(pack)
        return number

    def _find_number(self, pack: BlobRef) -> int:
        value = self._tables.get(b"numbers", pack.id)
        if value is not None:
            return int(_NUMBER.unpack(value)[0])
        number, self._count = self._count, self._count + 1
        self._tables.put(b"numbers", pack.id, _NUMBER.pack(number))
        self._tables.put(b"packs", _NUMBER.pack(number), encode(pack))
        self._by_number.pop(number, None)
        return number


class Pieces:
    """Where contents are: objects, or chunks, by their ids.

    New ones are held back and put in batches, in order. A table that is empty is not asked: each call into LMDB lets
    other threads have the interpreter, and has to wait for it to come back.
    """

    def __init__(self, tables: Tables, table: bytes, blobs: KnownBlobs) -> None:
        self._tables = tables
        self._table = table
        self._blobs = blobs
        self._held: dict[bytes, bytes] = {}
        self._is_empty = not tables.count(table)

    def find(self, content_id: bytes) -> Piece | None:
        """None if it is not known, or its pack is not in the store."""
        value: bytes | memoryview | None = self._held.get(content_id)
        if value is None and not self._is_empty:
            value = self._tables.get(self._table, content_id)
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
            self._tables.put_sorted(self._table, sorted(self._held.items()))
            self._held, self._is_empty = {}, False

    def forget(self) -> None:
        """The transaction was aborted: what was added since the last commit has gone."""
        self._held, self._is_empty = {}, not self._tables.count(self._table)
