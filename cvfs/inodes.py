"""Inode numbers are facts: computed from what an entry says, the same in every process, mount and revision.

A directory's number comes from (repository, path); any other file's from (repository, path, entry), so a changed file
is a new inode and an unchanged one keeps its number and its cached pages. All names of a hard-linked file share the
number of their link group.
"""

from typing import NamedTuple

import msgspec.structs
import xxhash

from cvfs.format.codec import encode
from cvfs.model import Entry, join

ROOT_INODE = 1
"""The kernel's number for the root of any FUSE mount; no other inode gets it, nor 0."""


class Identity(NamedTuple):
    """80 bits of hash: `number` is the inode number unless another file has it; `check`, 16 bits, tells the two apart."""

    number: int
    check: int


class Numbering:
    """The inode numbers of one repository; `seed`, a hash of its name, tells repositories apart."""

    def __init__(self, repository: str) -> None:
        self.seed = xxhash.xxh3_64_intdigest(repository.encode())

    def directory(self, path: bytes) -> Identity:
        return self._identity(b"d" + path)

    def entry(self, directory: bytes, entry: Entry) -> Identity:
        """The identity of `entry`, which is listed in `directory`."""
        if entry.is_directory:
            return self.directory(join(directory, entry.name))
        if entry.link_group:
            return self._identity(b"l" + encode(msgspec.structs.replace(entry, name=b"")))
        return self._identity(b"f" + directory + b"/" + encode(entry))

    def _identity(self, data: bytes) -> Identity:
        both = xxhash.xxh3_128_intdigest(data, self.seed)
        number = both & 0xFFFFFFFFFFFFFFFF
        return Identity(number if number > ROOT_INODE else number + 2, both >> 112)
