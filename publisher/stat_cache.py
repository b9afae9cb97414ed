"""What files looked like when they were last read, so that an unchanged one is not read again; as in git's index."""

import os
from collections.abc import Sequence

import msgspec

from cvfs.format.blob import digest
from cvfs.format.codec import decoder_of, encode
from cvfs.model import Entry
from publisher.index import Index

_SETTLED_NS = 20_000_000
"""A file whose status changed so shortly before it was read may be changed again without a new time stamp: the kernel's
clock for them ticks every 1 to 10 ms."""

_COARSE_SETTLED_NS = 2_100_000_000
"""The same where time stamps are whole seconds, as on some network file systems (2 s on FAT)."""


class Known(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An entry, and the status of the file at the time it was made."""

    entry: Entry
    inode: int
    ctime_ns: int
    size: int


_KNOWN = decoder_of(list[Known])


def is_settled(status: os.stat_result, seen_ns: int) -> bool:
    """Whether any change after `seen_ns`, when the file was looked at, must give it another ctime."""
    ctime_ns = status.st_ctime_ns
    margin_ns = _SETTLED_NS if ctime_ns % 1_000_000_000 else _COARSE_SETTLED_NS
    return ctime_ns + margin_ns < seen_ns


class StatCache:
    """The files of one tree, in runs of the sorted names of a directory. Other trees' files are kept beside them."""

    def __init__(self, index: Index, tree: bytes) -> None:
        self._index = index
        self._tree = digest(tree)

    def find(self, directory: bytes, run: int) -> dict[bytes, Known]:
        """What is known of run number `run` of a directory of the tree, by name."""
        value = self._index.find_files(self._key(directory, run))
        if value is None:
            return {}
        return {known.entry.name: known for known in _KNOWN.decode(value)}

    def put(self, directory: bytes, run: int, known: Sequence[Known], *, is_last: bool) -> None:
        """Replace what is known of a run; `is_last`: the directory has no runs behind it any more."""
        self._index.put_files(self._key(directory, run), encode(known))
        while is_last and self._index.drop_files(self._key(directory, run + 1)):
            run += 1

    def _key(self, directory: bytes, run: int) -> bytes:
        return digest(self._tree + directory)[:24] + run.to_bytes(4, "big")
