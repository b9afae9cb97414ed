"""The LMDB environment of an index: its tables, in one write transaction; thrown away when it is damaged."""

import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import msgspec

from cvfs.errors import StoreError

_VERSION = b"2"
"""Of the layout of the tables. A directory of another version is thrown away."""

_MAP_BYTES = (1 << 38, 1 << 34, 1 << 30, 1 << 28)
"""Address space, not memory or disk: the first of these that may be had, since it may be limited (`ulimit -v`). An
index of 200,000 small files takes 32 MB."""

_NAMES = (b"meta", b"objects", b"large", b"chunks", b"packs", b"numbers", b"pages", b"files", b"trees")

DatabaseError = lmdb.Error

BROKEN = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.PageNotFoundError,
    lmdb.CursorFullError,
    lmdb.BadTxnError,
    msgspec.DecodeError,
    struct.error,
)
"""What a damaged index raises. It is to be thrown away; but not where memory or the disk fails, which says nothing of
it."""


class Tables:
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


@contextmanager
def open_tables(path: Path) -> Iterator[Tables]:
    """The tables in the directory `path`, which is emptied first if it is no database, damaged or of another version.

    Raises StoreError: it cannot be used, now at least; and BROKEN, where damage is found only within the block. What is
    not committed in the end is not kept.
    """
    environment = _open_or_reset(path)
    try:
        tables = Tables(environment)
        try:
            yield tables
        finally:
            tables.close()
    except BROKEN:
        raise
    except DatabaseError as error:
        raise _unusable(path, error) from error
    finally:
        environment.close()


def _open_or_reset(path: Path) -> lmdb.Environment:
    try:
        return _open(path)
    except BROKEN:
        shutil.rmtree(path, ignore_errors=True)
    except (DatabaseError, OSError) as error:
        raise _unusable(path, error) from error
    try:
        return _open(path)
    except (DatabaseError, OSError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> StoreError:
    return StoreError(f"cannot keep state in {path}: {error} (choose with --state DIR)")


def _map(path: Path) -> lmdb.Environment:
    """Without LMDB's own locks: who has ours is alone, and theirs are a file in memory, which a full disk has no room
    for: a SIGBUS."""
    for map_bytes in _MAP_BYTES:
        try:
            return lmdb.open(
                str(path), map_size=map_bytes, max_dbs=len(_NAMES), metasync=False, readahead=False, lock=False
            )
        except lmdb.MemoryError:
            if map_bytes == _MAP_BYTES[-1]:
                raise
    raise AssertionError("unreachable")


def _open(path: Path) -> lmdb.Environment:
    environment = _map(path)
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
