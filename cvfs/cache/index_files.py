"""The files of the inode index: a directory with the list of leaves and the table.

It is index/BOOT-ID in the cache directory. Where there is no space, or no locks without which processes would damage it
to each other, another in the memory of the host takes its place; that is gone after the boot as well.

The table is `table.N`, N growing with it. All is done relative to an open directory: one that is removed or moved aside
meanwhile stays a consistent whole for those who use it, and nothing of theirs gets into the next one.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from cvfs import flock
from cvfs.cache import inode_table
from cvfs.cache.inode_table import InodeTable

log = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")  # noqa: S108 (below it in a directory that no other user may enter)
FIRST_CAPACITY = 1 << 16
_LEAVES = "pages"
_LOCK_DEADLINE_S = 5.0
"""A writer holds the lock for milliseconds, seconds when a large table grows; one that is stopped holds it forever."""


def disk_root(cache: Path) -> Path:
    """Where the index of a cache directory is."""
    return cache / "index" / Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def memory_root(cache: Path) -> Path:
    """Where the rest of it is if need be: for this user of this user namespace, in which others may have other ids."""
    space = os.stat("/proc/self/ns/user").st_ino
    return MEMORY / f"cvfs-{os.geteuid()}-{space}" / hashlib.sha256(os.fsencode(cache.absolute())).hexdigest()[:32]


class IndexFiles:
    """Those in the directory `root`, made if missing. Raises OSError: no space, no locks, or not writable."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open()
        if not flock.works(self.leaves_fd):
            self.close()
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def _open(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_private(os.fstat(self._directory), self._root)
            self.leaves_fd = self._open_file(_LEAVES, os.O_CREAT)
        except OSError:
            os.close(self._directory)
            raise

    def close(self) -> None:
        os.close(self.leaves_fd)
        os.close(self._directory)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One writer among all processes. Raises TimeoutError (an OSError): another one does not let go of it."""
        flock.wait_lock(self.leaves_fd, _LOCK_DEADLINE_S)
        try:
            yield
        finally:
            flock.unlock(self.leaves_fd)

    def first_table(self) -> InodeTable:
        """The table there is, made if there is none. What is broken is moved aside, and all is begun anew."""
        with self.locked():
            try:
                return self.newest_table() or self.new_table(FIRST_CAPACITY, None)
            except ValueError as error:
                log.warning("the inode index %s is broken (%s): begun anew", self._root, error)
        self._move_aside()
        with self.locked():
            return self.newest_table() or self.new_table(FIRST_CAPACITY, None)

    def newest_table(self) -> InodeTable | None:
        """The table of the newest generation; None if there is none. Raises ValueError if it is broken."""
        while generations := self._generations():
            with contextlib.suppress(FileNotFoundError):  # grown just now: there is a newer one
                fd = self._open_file(_name(generations[-1]), 0)
                try:
                    table = inode_table.open_file(fd)
                finally:
                    os.close(fd)
                return table
        return None

    def new_table(self, capacity: int, old: InodeTable | None) -> InodeTable:
        """A table of the next generation with what is in `old`. Under the lock. Raises OSError: no space."""
        fd = self._open_file(".new", os.O_CREAT | os.O_TRUNC)
        try:
            table = inode_table.in_file(fd, capacity, old)
        except OSError:
            os.unlink(".new", dir_fd=self._directory)
            raise
        finally:
            os.close(fd)
        if old is not None:
            table.take_over(old)
        self._publish(old)
        return table

    def _publish(self, old: InodeTable | None) -> None:
        """Make the new table the newest, and only then say that the old one has moved."""
        generations = self._generations()
        newest = _name(generations[-1] + 1 if generations else 1)
        os.rename(".new", newest, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        if old is not None:
            old.mark_moved()
        for generation in generations:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_name(generation), dir_fd=self._directory)

    def _move_aside(self) -> None:
        """Whoever still uses what is broken goes on with it, elsewhere."""
        if os.path.samestat(os.stat(self._root), os.fstat(self._directory)):  # else another process has done it
            self._root.rename(self._root.with_name(f"{self._root.name}.broken-{os.urandom(4).hex()}"))
        self.close()
        self._open()

    def _generations(self) -> list[int]:
        suffixes = [name.removeprefix("table.") for name in os.listdir(self._directory) if name.startswith("table.")]
        return sorted(int(suffix) for suffix in suffixes if suffix.isascii() and suffix.isdecimal())

    def _open_file(self, name: str, flags: int) -> int:
        flags |= os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, 0o600, dir_fd=self._directory)


def open_on_disk(cache: Path) -> IndexFiles:
    """The files in a cache directory. Those of earlier boots, and what was moved aside in them, are dropped."""
    root = disk_root(cache)
    files = IndexFiles(root)
    try:
        with files.locked():
            for other in root.parent.iterdir():
                if not other.name.startswith(root.name):
                    shutil.rmtree(other, ignore_errors=True)
    except OSError:
        files.close()
        raise
    return files


def open_in_memory(cache: Path) -> IndexFiles:
    """The files in the host's memory, in a directory that no other user has made or may write to."""
    root = memory_root(cache)
    root.parent.mkdir(mode=0o700, exist_ok=True)
    _check_private(os.lstat(root.parent), root.parent)
    return IndexFiles(root)


def _check_private(found: os.stat_result, path: Path) -> None:
    """Raise PermissionError unless `path` is a directory that no other user has made, or may write to: who can cut a
    file that is mapped ends the process."""
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, f"{path} is not of this user alone")


def _name(generation: int) -> str:
    return f"table.{generation}"
