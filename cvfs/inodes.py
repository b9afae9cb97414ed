"""Inode numbers are facts: computed from what an entry says, the same in every process, mount and revision.

A directory's number comes from (repository, path); any other file's from (repository, path, entry), so a changed file
is a new inode and an unchanged one keeps its number and its cached pages. All names of a hard-linked file share the
number of their link group.
"""

from collections.abc import Iterable
from stat import S_ISDIR
from typing import NamedTuple

import msgspec.structs
from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from cvfs.format.codec import encode
from cvfs.model import Entry, join

ROOT_INODE = 1
"""The kernel's number for the root of any FUSE mount; no other inode gets it, nor 0."""


class Identity(NamedTuple):
    """80 bits of hash: `number`, the inode number unless another file has it, and `check`, to tell the two apart."""

    number: int
    check: int


class Numbering:
    """The inode numbers of one repository; `seed`, a hash of its name, tells repositories apart."""

    def __init__(self, repository: str) -> None:
        self.seed = xxh3_64_intdigest(repository.encode())

    def directory(self, path: bytes) -> Identity:
        return self._identity(b"d" + path)

    def entry(self, directory: bytes, entry: Entry) -> Identity:
        """The identity of `entry`, which is listed in `directory`."""
        if entry.is_directory:
            return self.directory(join(directory, entry.name))
        if entry.link_group:
            return self._identity(b"l" + encode(msgspec.structs.replace(entry, name=b"")))
        return self._identity(b"f" + directory + b"/" + encode(entry))

    def entries(self, directory: bytes, entries: Iterable[Entry]) -> list[Identity]:
        """The identity of each of `entries`, which are listed in `directory`."""
        seed, prefix, one = self.seed, b"f" + directory + b"/", self.entry
        return [
            one(directory, entry)
            if entry.link_group or S_ISDIR(entry.mode)
            else _identity(xxh3_128_intdigest(prefix + encode(entry), seed))
            for entry in entries
        ]

    def _identity(self, data: bytes) -> Identity:
        return _identity(xxh3_128_intdigest(data, self.seed))


def _identity(both: int) -> Identity:
    number = both & 0xFFFFFFFFFFFFFFFF
    return Identity(number if number > ROOT_INODE else number + 2, both >> 112)
