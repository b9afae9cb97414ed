"""The directories of a tree: names and kinds, in key order, without a look at the files themselves."""

import errno
import os
import stat
from array import array
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

from cvfs.errors import PublishError
from cvfs.model import Entry, join
from publisher.source.entry import Xattrs, make_entry

Excluded = Callable[[bytes, bool], bool]
"""Whether a path, relative to the tree, is left out; the second argument says if it is a directory."""

_HELD_NAMES = 1_000_000
"""Listings made ahead of their turn are kept up to so many names in all (100 MB), and made again beyond."""


_AT_REST = " (publish again when nothing changes it, or leave it out with --exclude)"


class Listing(NamedTuple):
    """The sorted names of a directory with whether each is a directory."""

    names: list[tuple[bytes, bool]]
    subdirectories: int


class SourceTree:
    """A directory tree to publish. Paths are relative to it, so that they may be as long as Linux lets a path be."""

    def __init__(self, path: str, excluded: Excluded | None = None) -> None:
        """Raises PublishError unless `path` is a directory that can be read."""
        self.path = os.path.realpath(path)
        self._excluded = excluded
        try:
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except NotADirectoryError:
            raise PublishError(f"not a directory: {path}") from None
        except OSError as error:
            raise PublishError(f"cannot read {path}: {error.strerror}") from error

    def close(self) -> None:
        os.close(self.descriptor)

    def again(self) -> "SourceTree":
        """The same tree, for another thread, which closes it. Raises PublishError."""
        return SourceTree(self.path, self._excluded)

    def show(self, path: bytes) -> str:
        """How messages name a path of the tree: in one line, whatever bytes it has."""
        full = os.path.join(self.path, os.fsdecode(path)) if path else self.path
        return full if full.isprintable() else repr(full)

    def open_directory(self, path: bytes) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            descriptor = os.open(path or b".", flags, dir_fd=self.descriptor)
        except OSError as error:
            raise self.error(path, error) from error
        try:
            self.check_inside(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def check_file(self, descriptor: int, path: bytes) -> None:
        """Raise PublishError if what was opened as `path` is not inside, or no regular file any more."""
        self.check_inside(descriptor, path)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise self.changed(path)

    def check_inside(self, descriptor: int, path: bytes) -> None:
        """Raise PublishError if what was opened as `path` is something else, a directory above it having been replaced
        by a symbolic link: whoever owns a tree may not be allowed to read what its publisher is."""
        try:
            top, found = (os.readlink(b"/proc/self/fd/%d" % each) for each in (self.descriptor, descriptor))
        except OSError:
            return  # There is no /proc, or the path is too long for it.
        if path and found != top.rstrip(b"/") + b"/" + path:
            raise self.changed(path)

    def error(self, path: bytes, error: OSError) -> PublishError:
        """An error that names the path, and says what to do if there is something."""
        advice = ""
        if error.errno in (errno.EACCES, errno.EPERM):
            advice = " (let the publisher's user read it, or leave it out with --exclude)"
        elif error.errno in (errno.ENOENT, errno.ESTALE):
            advice = _AT_REST
        return PublishError(f"cannot read {self.show(path)}: {error.strerror}{advice}")

    def changed(self, path: bytes) -> PublishError:
        """What is to be raised of a path that is not what it was a moment before."""
        return PublishError(f"changed while it was read: {self.show(path)}{_AT_REST}")

    def entry(
        self,
        path: bytes,
        name: bytes,
        status: os.stat_result,
        xattrs: Xattrs,
        *,
        target: bytes = b"",
        content_id: bytes = b"",
    ) -> Entry:
        """The entry of a path, for a single name. Raises PublishError if the format cannot hold it."""
        try:
            return make_entry(name, status, xattrs, target=target, content_id=content_id)
        except PublishError as error:
            raise PublishError(f"{error}: {self.show(path)}") from None

    def list(self, path: bytes) -> Listing:
        """The listing of one directory, without what is excluded. Raises PublishError."""
        descriptor = self.open_directory(path)
        try:
            with os.scandir(descriptor) as entries:
                names = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError as error:
            raise self.error(path, error) from error
        finally:
            os.close(descriptor)
        if self._excluded is not None:
            excluded, prefix = self._excluded, path + b"/" if path else b""
            names = [(name, is_directory) for name, is_directory in names if not excluded(prefix + name, is_directory)]
        names.sort()
        return Listing(names, sum(is_directory for _, is_directory in names))

    def walk(self) -> "Iterator[Directory]":
        """Every directory in key order: parents first, then by name."""
        held: dict[bytes, Listing] = {}
        held_names = 0
        pending = [b""]
        while pending:
            path = pending.pop()
            listing = held.pop(path, None)
            if listing is None:
                listing = self.list(path)
            else:
                held_names -= len(listing.names)
            below = [path + b"/" + name if path else name for name, is_directory in listing.names if is_directory]
            counts = {}
            for subdirectory in below:
                ahead = self.list(subdirectory)
                counts[subdirectory] = ahead.subdirectories
                if held_names + len(ahead.names) <= _HELD_NAMES:
                    held[subdirectory] = ahead
                    held_names += len(ahead.names)
            yield Directory(path, listing, counts)
            pending.extend(reversed(below))

    def count_names(self) -> dict[tuple[int, int], int]:
        """How many names in the tree each file has that has several in it, by (device, inode).

        Whole trees may be linked to a cache elsewhere, as conda, pnpm and uv do: such files have one name here, and
        cost eight bytes each.
        """
        inodes: dict[int, array[int]] = {}
        for directory in self.walk():
            for device, inode in self._multiply_named(directory):
                inodes.setdefault(device, array("Q")).append(inode)
        counts = {}
        for device, found in inodes.items():
            for inode, same in groupby(sorted(found)):
                count = sum(1 for _ in same)
                if count > 1:
                    counts[device, inode] = count
        return counts

    def _multiply_named(self, directory: "Directory") -> Iterator[tuple[int, int]]:
        descriptor = self.open_directory(directory.path)
        try:
            for name, is_directory in directory.listing.names:
                if not is_directory:
                    status = self._status(directory.path, descriptor, name)
                    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                        yield status.st_dev, status.st_ino
        finally:
            os.close(descriptor)

    def _status(self, directory: bytes, descriptor: int, name: bytes) -> os.stat_result:
        try:
            return os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except OSError as error:
            raise self.error(join(directory, name), error) from error


class Directory(NamedTuple):
    """A directory whose turn it is; `counts` tells how many subdirectories each of its subdirectories has."""

    path: bytes
    listing: Listing
    counts: dict[bytes, int]
