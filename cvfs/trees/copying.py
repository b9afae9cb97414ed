"""Copies of files and trees out of a repository, as `cp -a` makes them; whatever has its final name is complete."""

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from cvfs.errors import CvfsError, PathError
from cvfs.fetcher import Fetcher
from cvfs.file import File
from cvfs.format.tree.lookup import Found
from cvfs.model import Entry
from cvfs.repository import Repository
from cvfs.trees.tally import Tally
from cvfs.trees.walk import list_runs

BLOCK_BYTES = 4 << 20
PARALLEL = 16
"""Files under way at once: enough to keep all connections busy when each file is in another pack."""

_ZEROS = bytes(BLOCK_BYTES)
_TEMPORARY = re.compile(rb"\.cvfs-[0-9a-f]{16}-\d+")
"""Names of files that are not complete yet."""

_SET_ID = stat.S_ISUID | stat.S_ISGID
_UNSUPPORTED = (errno.EPERM, errno.EACCES, errno.ENOTSUP)


class Copier:
    """Copies records of `repository`; `tally` says how far it is.

    Owners are kept by root only, as by cp(1); set-id bits only with their owner. Extended attributes are kept where
    the target can. A file of a tree that cannot be read or written goes into the tally, and the others are copied. With
    `resume` a regular file that the target has with the right size and time is taken for an earlier copy, and left;
    what an earlier copy that was killed had not completed is removed.
    """

    def __init__(self, repository: Repository, fetcher: Fetcher, tally: Tally, *, resume: bool = False) -> None:
        self._repository, self._fetcher, self._tally, self._resume = repository, fetcher, tally, resume
        self._limiter = trio.CapacityLimiter(PARALLEL)
        self._alone = False
        self._run, self._serial = os.urandom(8).hex().encode(), 0
        self._first_names: dict[int, bytes] = {}
        self._other_names: list[tuple[bytes, bytes]] = []
        self._directories: list[tuple[bytes, Entry]] = []

    async def copy(self, found: Found, target: bytes) -> None:
        """`found`, with all below it if it is a directory, becomes `target`. What is there already is replaced name by
        name, never a directory by something else. Raises PathError if a directory, or all there is to copy, cannot be
        made, and what reading metadata raises."""
        self._alone = not found.entry.is_directory
        if not self._alone:
            self._fetcher.bring_only_what_is_asked()
        async with trio.open_nursery() as nursery:
            await self._copy(nursery, found, target)
        for first, other in self._other_names:
            with self._errors_counted(other):
                self._put(other, lambda temporary, first=first: os.link(first, temporary))  # type: ignore[misc]
        for directory, entry in reversed(self._directories):
            with self._errors_counted(directory):
                _set_attributes(directory, entry)

    async def _copy(self, nursery: trio.Nursery, found: Found, target: bytes) -> None:
        pending = [(found, target)]
        while pending:
            found, target = pending.pop()
            if not found.entry.is_directory:
                await self._copy_leaf(nursery, found, target)
                continue
            with _errors_of(target):
                if not _make_directory(target) and self._resume:
                    _remove_leftovers(target)
            self._directories.append((target, found.entry))
            below = []
            async for run in list_runs(self._repository, found.record.path):
                for item in run:
                    path = target + b"/" + item.entry.name
                    if item.entry.is_directory:
                        below.append((item, path))
                    else:
                        await self._copy_leaf(nursery, item, path)
            pending += reversed(below)

    async def _copy_leaf(self, nursery: trio.Nursery, found: Found, target: bytes) -> None:
        entry = found.entry
        if entry.link_group and entry.link_group in self._first_names:
            self._other_names.append((self._first_names[entry.link_group], target))
            return
        if entry.link_group:
            self._first_names[entry.link_group] = target
        if not entry.is_regular:
            with self._errors_counted(target):
                self._make_special(entry, target)
            return
        if self._resume and _is_copy(target, entry):
            self._tally.present += 1
            self._tally.add(1, entry.size)
            return
        slot = object()
        await self._limiter.acquire_on_behalf_of(slot)
        nursery.start_soon(self._copy_file, found, target, slot)

    async def _copy_file(self, found: Found, target: bytes, slot: object) -> None:
        temporary = self._temporary(target)
        try:
            with self._errors_counted(target), _new_file(temporary) as descriptor:
                await self._write(File(found, self._fetcher), descriptor)
                _set_attributes(descriptor, found.entry)
                os.rename(temporary, target)
                self._tally.add(1, 0)
        finally:
            self._limiter.release_on_behalf_of(slot)

    async def _write(self, file: File, descriptor: int) -> None:
        """Whole; where a block is all zeros a hole is left."""
        size = file.entry.size
        os.ftruncate(descriptor, size)
        for offset in range(0, size, BLOCK_BYTES):
            block = await file.read(offset, BLOCK_BYTES)
            if block != _ZEROS:
                await trio.to_thread.run_sync(_write_block, descriptor, block, offset)
            self._tally.add(0, len(block))

    def _make_special(self, entry: Entry, target: bytes) -> None:
        """A symbolic link, or a file that is no more than its inode."""

        def make(temporary: bytes) -> None:
            if entry.is_symlink:
                os.symlink(entry.target, temporary)
            else:
                os.mknod(temporary, stat.S_IFMT(entry.mode) | 0o600, entry.rdev)
            _set_attributes(temporary, entry)

        self._put(target, make)
        self._tally.add(1, 0)

    def _put(self, target: bytes, make: Callable[[bytes], None]) -> None:
        """Let `make` make a file of another name, then give it the name `target`."""
        temporary = self._temporary(target)
        try:
            make(temporary)
            os.rename(temporary, target)
        finally:
            # Also after success: rename(2) does nothing to two names of one file.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    @contextmanager
    def _errors_counted(self, target: bytes) -> Iterator[None]:
        try:
            with _errors_of(target):
                yield
        except CvfsError as error:
            if self._alone:
                raise
            self._tally.fail(target, error)

    def _temporary(self, target: bytes) -> bytes:
        self._serial += 1
        return b"%s/.cvfs-%s-%d" % (os.path.dirname(target) or b".", self._run, self._serial)


@contextmanager
def _errors_of(target: bytes) -> Iterator[None]:
    """What the system says of the target is the user's to know, with the path."""
    try:
        yield
    except OSError as error:
        raise PathError(error.errno or errno.EIO, target) from None


@contextmanager
def _new_file(path: bytes) -> Iterator[int]:
    """A descriptor of a new file, which is removed unless it was renamed meanwhile. The lock on it tells others that
    somebody is at work."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _make_directory(path: bytes) -> bool:
    """A directory that can be filled; its own mode comes at the end. A symbolic link to one is not one. Whether it is
    new."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise
        return False
    return True


def _remove_leftovers(directory: bytes) -> None:
    """Remove what a copy that was killed had begun in a directory, but nothing that another is writing now."""
    with os.scandir(directory) as found:
        names = [each.path for each in found if _TEMPORARY.fullmatch(each.name)]
    for path in names:
        with contextlib.suppress(FileNotFoundError):
            if not (stat.S_ISREG(os.lstat(path).st_mode) and _is_locked(path)):
                os.unlink(path)


def _is_locked(path: bytes) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_copy(path: bytes, entry: Entry) -> bool:
    """By rsync's rule: the same size and time."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    same = status.st_size == entry.size and status.st_mtime_ns == entry.mtime_ns
    return same and stat.S_ISREG(status.st_mode)


def _write_block(descriptor: int, block: bytes | memoryview, offset: int) -> None:
    with open(descriptor, "wb", closefd=False) as file:
        file.seek(offset)
        file.write(block)


def _set_attributes(target: bytes | int, entry: Entry) -> None:
    """Owner, mode, extended attributes and time; chown(2) clears set-id bits, so the mode comes after it."""
    follow = isinstance(target, int)
    owned = os.geteuid() == 0
    if owned:
        os.chown(target, entry.uid, entry.gid, follow_symlinks=follow)
    for name, value in entry.xattrs:
        try:
            os.setxattr(target, name, value, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    if not entry.is_symlink:
        os.chmod(target, stat.S_IMODE(entry.mode) & ~(0 if owned else _SET_ID))
    os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=follow)
