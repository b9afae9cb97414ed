"""The inode index: which record of which page an inode number stands for.

The kernel holds nothing but numbers, and the process that gave them out may be gone; so every number is in the index
before the kernel hears of it, and all processes of the host share it. It is needed only as long as a mount that was
given numbers lives, so each boot begins a new one and a power cut can tear none: hence no syncs.

Where there is no room for it on the disk it is kept in memory: what is mounted goes on.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cvfs.cache import inode_table
from cvfs.cache.directory import CacheDirectory
from cvfs.cache.inode_table import Full, InodeTable, Slot
from cvfs.format.pages import Leaf
from cvfs.inodes import Identity, Numbering
from cvfs.model import BlobRef, Digest

log = logging.getLogger(__name__)

_FIRST_CAPACITY = 1 << 16
_GROWTH = 4
_TRIM_EVERY = 64
_OWNER = struct.Struct("=Q32sII")


class Place(NamedTuple):
    """Record number `position` of leaf `page`, in the repository whose `Numbering.seed` is `repository`."""

    repository: int
    page: BlobRef
    position: int


class InodeIndex:
    """Numbers and places, for all repositories. `find` takes microseconds; `adopt` writes: call it in a thread."""

    def __init__(self, directory: CacheDirectory) -> None:
        self._lock = threading.Lock()
        self._contested: dict[tuple[int, int], int] = {}
        self._adoptions = 0
        self._files: _IndexFiles | None = None
        self._owners = _Owners(None)
        self._table = inode_table.in_memory(_FIRST_CAPACITY)
        if directory.writable:
            try:
                self._files = _IndexFiles(directory.path)
                with self._files.locked():
                    self._table = self._files.open_table()
                self._owners = _Owners(self._files.owners_fd)
            except (OSError, ValueError) as error:
                self._leave_disk(error)

    def adopt(self, numbering: Numbering, page: BlobRef, leaf: Leaf) -> None:
        """Put in the number of each record of `leaf`, the page `page` of a repository, unless all are there."""
        with self._lock:
            known = self._owners.number(numbering.seed, page)
            if known is not None and not self._table.contested:
                return
            with self._files.locked() if self._files else contextlib.nullcontext():
                self._follow()
                number = self._owners.add(numbering.seed, page) if known is None else known
                for position, identity in enumerate(identities(numbering, leaf)):
                    self._put(number, position, identity)
            self._trim_sometimes()

    def find(self, number: int) -> Place | None:
        """Where the record with this inode number stands; None if it was never adopted."""
        slot = self._table.find(number)
        if slot is None and self._table.moved:
            with self._lock:
                self._follow()
            slot = self._table.find(number)
        if slot is None:
            return None
        owner = self._owners.get(slot.page)
        return None if owner is None else Place(*owner, slot.position)

    def resolve(self, identity: Identity) -> int:
        """The inode number of `identity`: its own, or the one it was given because another file has that."""
        if not self._contested:
            return identity.number
        return self._contested.get(identity, identity.number)

    def close(self) -> None:
        if self._files is not None:
            self._files.close()

    def _put(self, page: int, position: int, identity: Identity) -> None:
        number = self.resolve(identity)
        while True:
            try:
                other = self._table.put(Slot(number, page, position, identity.check))
            except Full:
                self._grow()
                continue
            if other is None:
                return
            number = number + 1 & 0xFFFFFFFFFFFFFFFF or 2
            self._contested[identity] = number
            self._table.mark_contested()
            log.warning("inode number %#x is taken: %#x it is", identity.number, number)

    def _follow(self) -> None:
        """Go on with the table of another process that has outgrown ours."""
        if self._files is not None and self._table.moved:
            self._table = self._files.open_table()

    def _grow(self) -> None:
        capacity = self._table.capacity * _GROWTH
        larger: InodeTable | None = None
        if self._files is not None:
            try:
                larger = self._files.new_table(capacity, self._table)
            except OSError as error:
                self._leave_disk(error)
        if larger is None:
            larger = inode_table.in_memory(capacity)
            larger.take_over(self._table)
        self._table = larger

    def _leave_disk(self, error: Exception) -> None:
        log.warning("no inode index on disk (%s): it is kept in memory", error)
        self._files = None
        self._owners.leave_disk()

    def _trim_sometimes(self) -> None:
        self._adoptions += 1
        if self._files is not None and self._adoptions % _TRIM_EVERY == 0:
            self._table.trim()


def identities(numbering: Numbering, leaf: Leaf) -> Iterator[Identity]:
    """The identity of each record of a leaf, in order."""
    for group in leaf.groups:
        for entry in group.entries:
            yield numbering.entry(group.directory, entry)


class _Owners:
    """The leaves that were adopted, by number: an append-only file of (repository seed, page), read as it grows."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._list: list[tuple[int, BlobRef]] = []
        self._numbers: dict[tuple[int, BlobRef], int] = {}

    def number(self, seed: int, page: BlobRef) -> int | None:
        known = self._numbers.get((seed, page))
        if known is None:
            self._read_on()
            known = self._numbers.get((seed, page))
        return known

    def get(self, number: int) -> tuple[int, BlobRef] | None:
        if number >= len(self._list):
            self._read_on()
        return self._list[number] if number < len(self._list) else None

    def add(self, seed: int, page: BlobRef) -> int:
        """Under the lock of the index. A number once given is never given again."""
        self._read_on()
        number = len(self._list)
        if self._fd is not None:
            record = _OWNER.pack(seed, page.id, page.stored_size, page.plain_size)
            try:
                os.pwrite(self._fd, record, number * _OWNER.size)
            except OSError as error:
                log.warning("the inode index is not shared any more: %s", error)
                self._fd = None
        self._append(seed, page)
        return number

    def leave_disk(self) -> None:
        self._fd = None

    def _read_on(self) -> None:
        if self._fd is None:
            return
        data = os.pread(self._fd, 1 << 24, len(self._list) * _OWNER.size)
        for seed, page_id, stored, plain in _OWNER.iter_unpack(data[: len(data) // _OWNER.size * _OWNER.size]):
            self._append(seed, BlobRef(Digest(page_id), stored, plain))

    def _append(self, seed: int, page: BlobRef) -> None:
        self._numbers[seed, page] = len(self._list)
        self._list.append((seed, page))


class _IndexFiles:
    """index/BOOT-ID in the cache directory: the file of owners, and tables of growing generations."""

    def __init__(self, cache: Path) -> None:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        self._root = cache / "index" / boot
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_others(self._root)
        self.owners_fd = os.open(self._root / "pages", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._generation = 0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One writer among all processes."""
        fcntl.lockf(self.owners_fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.owners_fd, fcntl.LOCK_UN)

    def open_table(self) -> InodeTable:
        """The table of the newest generation, made if there is none. Under the lock."""
        generations = [int(path.suffix[1:]) for path in self._root.glob("table.*") if path.suffix[1:].isdecimal()]
        if not generations:
            return self.new_table(_FIRST_CAPACITY, None)
        self._generation = max(generations)
        fd = os.open(self._path(self._generation), os.O_RDWR | os.O_CLOEXEC)
        try:
            return inode_table.open_file(fd)
        finally:
            os.close(fd)

    def new_table(self, capacity: int, old: InodeTable | None) -> InodeTable:
        """A table of the next generation with what is in `old`. Under the lock. Raises OSError: no space."""
        temporary = self._root / ".new"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            table = inode_table.in_file(fd, capacity)
        except OSError:
            temporary.unlink()
            raise
        finally:
            os.close(fd)
        if old is not None:
            table.take_over(old)
        temporary.rename(self._path(self._generation + 1))
        if old is not None:
            old.mark_moved()
            self._path(self._generation).unlink(missing_ok=True)
        self._generation += 1
        return table

    def close(self) -> None:
        os.close(self.owners_fd)

    def _path(self, generation: int) -> Path:
        return self._root / f"table.{generation}"


def _remove_others(root: Path) -> None:
    """Drop the indexes of earlier boots."""
    for other in root.parent.iterdir():
        if other != root:
            shutil.rmtree(other, ignore_errors=True)
