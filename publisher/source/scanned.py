"""What a scan finds: runs of names, the files to read among them, files of several names."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from cvfs.model import Entry, Record
from publisher.packs.pack import Place
from publisher.state.stat_cache import KnownFile, is_settled


class LinkGroup:
    """A file of several names in the tree. `number` and `count` as an entry has them."""

    __slots__ = ("count", "first", "number")

    def __init__(self, number: int, count: int) -> None:
        self.number = number
        self.count = count
        self.first: Unread | None = None

    def apply(self, entry: Entry) -> Entry:
        return replace(entry, nlink=self.count, link_group=self.number)


class Unread:
    """A regular file whose content is not known. `entry` is made once it has been read.

    `path` is relative to the source tree, `directory` to the repository. `same` is the first name of the same file.
    `number` counts the paths of the tree before it; `place` is where its content goes.
    """

    __slots__ = ("directory", "entry", "group", "name", "number", "path", "place", "same", "seen_ns", "status")

    def __init__(self, directory: bytes, path: bytes, name: bytes, status: os.stat_result) -> None:
        self.directory = directory
        self.path = path
        self.name = name
        self.status = status
        self.group: LinkGroup | None = None
        self.same: Unread | None = None
        self.entry: Entry | None = None
        self.place: Place | None = None
        self.seen_ns = 0
        self.number = 0


@dataclass(slots=True)
class Run:
    """A run of the names of one directory, in order: finished records, and files to read.

    `known` is what the stat cache shall remember of it, the files to read aside. `is_changed`: it must be told.
    """

    directory: bytes
    path: bytes
    number: int
    is_last: bool
    items: list[Record | Unread] = field(default_factory=list)
    known: list[KnownFile] = field(default_factory=list)
    is_changed: bool = False

    def remembered(self) -> Sequence[KnownFile]:
        """What the stat cache shall keep, once all has been read; files changed a moment before are left out."""
        read = [item for item in self.items if isinstance(item, Unread) and is_settled(item.status, item.seen_ns)]
        known = self.known + [known_as(item.entry, item.status) for item in read if item.entry is not None]
        return sorted(known, key=lambda known: known.entry.name)


def known_as(entry: Entry, status: os.stat_result) -> KnownFile:
    if not stat.S_ISDIR(entry.mode) and entry.nlink != 1:
        entry = replace(entry, nlink=1, link_group=0)
    return KnownFile(entry, status.st_ino, status.st_ctime_ns, status.st_size)
