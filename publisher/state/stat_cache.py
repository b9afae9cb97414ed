"""What files looked like when they were last read, so that an unchanged one is not read again; as in git's index."""

import os
import time
from collections.abc import Callable, Sequence

import msgspec

from cvfs.format.blob import digest
from cvfs.format.codec import decoder_of, encode
from cvfs.model import Entry
from publisher.state.index import Index

_SETTLED_NS = 20_000_000
"""A file whose status changed so shortly before it was read may be changed again without a new time stamp: the kernel's
clock for them ticks every 1 to 10 ms."""

_COARSE_SETTLED_NS = 2_100_000_000
"""The same where time stamps are whole seconds, as on some network file systems (2 s on FAT)."""


_TREE_KEY_BYTES = 8
_DIRECTORY_KEY_BYTES = 16


class KnownFile(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An entry, and the status of the file at the time it was made."""

    entry: Entry
    inode: int
    ctime_ns: int
    size: int


_KNOWN = decoder_of(list[KnownFile])


def tree_key(path: bytes) -> bytes:
    """What the keys of all that is kept of a tree begin with."""
    return digest(path)[:_TREE_KEY_BYTES]


def is_settled(status: os.stat_result, seen_ns: int) -> bool:
    """Whether any change after `seen_ns`, when the file was looked at, must give it another ctime."""
    ctime_ns = status.st_ctime_ns
    margin_ns = _SETTLED_NS if ctime_ns % 1_000_000_000 else _COARSE_SETTLED_NS
    return ctime_ns + margin_ns < seen_ns


def wait_until_settled(status: os.stat_result) -> int:
    """Wait out the tick in which a file was changed, if that is now; returns the time, in ns, for `is_settled`.

    So a file read afterwards need not be read again at the next publish. It is not done for coarse time stamps.
    """
    now_ns = time.time_ns()
    left_ns = status.st_ctime_ns + _SETTLED_NS - now_ns
    if 0 <= left_ns <= _SETTLED_NS:
        time.sleep((left_ns + 1_000_000) / 1e9)
        return time.time_ns()
    return now_ns


class StatCache:
    """The files of one tree, in runs of the sorted names of a directory. Other trees' files are kept beside them."""

    def __init__(self, index: Index, tree: bytes) -> None:
        self._index = index
        self._tree = tree_key(tree)

    def directory(self, path: bytes) -> "KnownDirectory":
        return KnownDirectory(lambda run: self._find(path, run))

    def _find(self, directory: bytes, run: int) -> list[KnownFile]:
        value = self._index.find_files(self._key(directory, run))
        return [] if value is None else _KNOWN.decode(value)

    def put(self, directory: bytes, run: int, known: Sequence[KnownFile], *, is_last: bool) -> None:
        """Replace what is known of a run; `is_last`: the directory has no runs behind it any more."""
        self._index.put_files(self._key(directory, run), encode(known))
        while is_last and self._index.drop_files(self._key(directory, run + 1)):
            run += 1

    def _key(self, directory: bytes, run: int) -> bytes:
        return self._tree + digest(directory)[:_DIRECTORY_KEY_BYTES] + run.to_bytes(4, "big")


class KnownDirectory:
    """What is known of one directory of the tree, run after run. New names may have moved others into the next run."""

    def __init__(self, find: Callable[[int], list[KnownFile]]) -> None:
        self._find = find
        self._loaded = 0
        self._last = b""
        self._names: list[bytes] = []
        self._ahead: dict[bytes, KnownFile] = {}

    def run(self, number: int, names: Sequence[bytes]) -> dict[bytes, KnownFile]:
        """What is known of `names`, run number `number`, among others. To be asked in order.

        The old run of that number is always loaded, so that it may be replaced from now on.
        """
        while self._loaded <= number or (self._names and self._last < names[-1]):
            found = self._find(self._loaded)
            self._loaded += 1
            self._names = [known.entry.name for known in found]
            self._last = self._names[-1] if found else self._last
            self._ahead.update(zip(self._names, found, strict=True))
        known, last = self._ahead, names[-1]
        self._ahead = {name: value for name, value in known.items() if name > last} if self._last > last else {}
        return known

    def is_as_remembered(self, names: Sequence[bytes]) -> bool:
        """Whether the run asked for last is remembered as just these names."""
        return self._names == names
