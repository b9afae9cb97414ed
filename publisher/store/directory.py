"""A store in a directory: data/ and the head as any web server serves them, the publisher's own in .publisher/."""

import errno
import itertools
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cvfs.errors import StatusError, StoreError
from cvfs.format.blob import blob_path
from cvfs.limits import KIB, MAX_BLOB_BYTES
from cvfs.model import BlobRef, Digest
from cvfs.trust.names import DIRECTORY, MAX_TARGETS_BYTES, MAX_TIMESTAMP_BYTES
from cvfs.trust.names import TIMESTAMP as HEAD
from publisher.locking import Waiting, lock_file
from publisher.store import beneath
from publisher.store.base import HeadMovedError, StoredBlob
from publisher.store.disk import begin_write_back, sync_file_system, write_all

_OWN = ".publisher"
_LOCK = "lock"
_TEMPORARY = f"{_OWN}/incoming"
_TEMPORARY_NAME = re.compile("[0-9]+-[0-9]+-[0-9]+")
_BLOB_NAME = re.compile("[0-9a-f]{64}")

_BEGUN_BYTES = 64 * KIB
"""Files from this size on, packs that is, are on their way to the disk at once. Small ones it takes better together."""

_MAY_NOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM)


class DirectoryStore:
    """See `Store`. Blobs are written beside data/ and renamed into it, so no reader ever sees half of one.

    What is made in it gets the permissions of its directory, whatever the umask: that of a cron job must not keep a web
    server from reading, nor that of one publisher the next. Where that lets a group write, nothing that its members put
    there leads out of the directory (`beneath`).
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        self._mode = stat.S_IMODE(os.stat(path).st_mode) | 0o700
        self.location = str(path)
        self._root = os.fspath(path)
        self._numbers = itertools.count()
        self._locked: int | None = None

    def has_blob(self, ref: BlobRef) -> bool:
        try:
            return os.stat(self._blob(ref)).st_size == ref.stored_size
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._error("cannot read", error) from error

    def put_blob(self, ref: BlobRef, stored: bytes) -> bool:
        if self.has_blob(ref):
            return False
        try:
            self._write(blob_path(ref.id), stored)
        except OSError as error:
            raise self._error("cannot write", error) from error
        return True

    def get_blob(self, ref: BlobRef) -> bytes:
        try:
            with open(beneath.open_file(self._root, blob_path(ref.id)), "rb") as file:
                return file.read(MAX_BLOB_BYTES + 1)
        except OSError as error:
            raise self._error("cannot read", error) from error

    def stored_s(self, blob_id: Digest) -> int | None:
        """When a blob was put here, in whole seconds since 1970 as all times are; None if it is not here."""
        try:
            return int(os.stat(f"{self._root}/{blob_path(blob_id)}").st_mtime)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._error("cannot read", error) from error

    def list_blobs(self) -> Iterator[StoredBlob]:
        """All blobs, in no order. What has not the name of one is passed over."""
        try:
            with beneath.directory(self._root, "data") as data, os.scandir(data) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        yield from _list_blobs(self._root, entry.name)
        except OSError as error:
            raise self._error("cannot read", error) from error

    def remove_blob(self, blob_id: Digest) -> None:
        """Remove a blob, if it is there."""
        try:
            above, name = os.path.split(blob_path(blob_id))
            with suppress(FileNotFoundError), beneath.directory(self._root, above) as directory:
                os.unlink(name, dir_fd=directory)
        except OSError as error:
            raise self._error("cannot remove from", error) from error

    def get_metadata(self, path: str, max_bytes: int) -> bytes:
        try:
            with open(beneath.open_file(self._root, path), "rb") as file:
                data = file.read(max_bytes + 1)
        except FileNotFoundError as error:
            raise StatusError(f"{self.location}/{path}", 404, "no such file") from error
        except OSError as error:
            raise self._error("cannot read", error) from error
        if len(data) > max_bytes:
            raise StoreError(f"{self.location}/{path} is larger than {max_bytes} bytes")
        return data

    def add_metadata(self, path: str, data: bytes) -> bool:
        try:
            self._write(path, data, durable=True, replace=False)
        except FileExistsError:
            return self.get_metadata(path, MAX_TARGETS_BYTES) == data
        except OSError as error:
            raise self._error("cannot write", error) from error
        return True

    def read_head(self) -> bytes:
        return self.get_metadata(HEAD, MAX_TIMESTAMP_BYTES)

    def swap_head(self, expected: bytes, new: bytes) -> None:
        if self.read_head() != expected:
            raise HeadMovedError(
                f"{self.location}: another publisher has made a new revision meanwhile; nothing was changed: "
                "do it again"
            )
        self.write_head(new)

    def write_head(self, new: bytes) -> None:
        """Replace the head durably."""
        self.replace_metadata(HEAD, new)

    def replace_metadata(self, path: str, data: bytes) -> None:
        """Put a file of metadata in place, whatever was there. Only for the head, and for a store that has none."""
        try:
            self._write(path, data, durable=True)
        except OSError as error:
            raise self._error("cannot write", error) from error

    def sync(self) -> None:
        try:
            if self._locked is not None:
                # Open since before the first blob, so that it learns of each that the disk has refused meanwhile.
                return sync_file_system(self._locked)
            with beneath.directory(self._root) as descriptor:
                sync_file_system(descriptor)
        except OSError as error:
            raise self._error("cannot write", error) from error

    @contextmanager
    def lock(self, waiting: Waiting | None, *, to_write: bool = True) -> Iterator[None]:
        """As `Store.lock`, by flock(2). What a killed publisher left half-written is removed."""
        try:
            descriptor = self._open_lock()
        except OSError as error:
            if not to_write and error.errno in _MAY_NOT_WRITE:
                yield
                return
            raise self._error("cannot lock", error) from error
        try:
            self._take_turn(descriptor, waiting)
            self._remove_temporary_files()
            self._locked = descriptor
            yield
        finally:
            self._locked = None
            os.close(descriptor)

    def _open_lock(self) -> int:
        """Where there is room for what is written; a store that was copied from a mirror has none yet."""
        self.make_directory(_TEMPORARY)
        try:
            with beneath.directory(self._root, _OWN) as own:
                descriptor = beneath.new_file(own, _LOCK, os.O_RDWR)
        except FileExistsError:
            return beneath.open_file(self._root, f"{_OWN}/{_LOCK}", os.O_RDWR)
        self._share(descriptor, 0o666)  # Not of one that was there: it may be any file, linked or moved to this name.
        return descriptor

    def _take_turn(self, descriptor: int, waiting: Waiting | None) -> None:
        try:
            lock_file(descriptor, waiting, f"{self.location}: another publisher is at work")
        except OSError as error:
            raise self._error("cannot lock", error) from error

    def _remove_temporary_files(self) -> None:
        """Those that `_write` makes, and nothing else that may be there."""
        try:
            with beneath.directory(self._root, _TEMPORARY) as incoming, os.scandir(incoming) as entries:
                for entry in entries:
                    if _TEMPORARY_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        with suppress(FileNotFoundError):
                            os.unlink(entry.name, dir_fd=incoming)
        except OSError as error:
            raise self._error("cannot clean up", error) from error

    def _write(self, relative: str, data: bytes, *, durable: bool = False, replace: bool = True) -> None:
        """Put a file in place. Raises FileExistsError if it is not to `replace` one."""
        temporary = f"{os.getpid()}-{threading.get_ident()}-{next(self._numbers)}"
        with beneath.directory(self._root, _TEMPORARY) as incoming:
            try:
                self._write_temporary(incoming, temporary, data, durable)
                self._move(incoming, temporary, relative, durable, replace)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=incoming)
                raise

    def _write_temporary(self, incoming: int, temporary: str, data: bytes, durable: bool) -> None:
        descriptor = beneath.new_file(incoming, temporary, os.O_WRONLY)
        try:
            self._share(descriptor, 0o644)  # Replaced by others of the group, if at all, but not written to.
            write_all(descriptor, data)
            if durable:
                os.fsync(descriptor)
            elif len(data) >= _BEGUN_BYTES:
                begin_write_back(descriptor)
        finally:
            os.close(descriptor)

    def _move(self, incoming: int, temporary: str, relative: str, durable: bool, replace: bool) -> None:
        above, name = os.path.split(relative)
        with beneath.directory(self._root, above, self._mode) as directory:
            if replace:
                os.rename(temporary, name, src_dir_fd=incoming, dst_dir_fd=directory)
            else:
                os.link(temporary, name, src_dir_fd=incoming, dst_dir_fd=directory, follow_symlinks=False)
                os.unlink(temporary, dir_fd=incoming)
            if durable:
                os.fsync(directory)

    def make_directory(self, relative: str) -> None:
        """Make a directory in the store, and those above it, if they are not there. Raises OSError."""
        with beneath.directory(self._root, relative, self._mode):
            pass

    def _share(self, descriptor: int, mode: int) -> None:
        """Let others have what of `mode` they have of the store. Not where a file system has no permissions."""
        with suppress(OSError):
            os.fchmod(descriptor, self._mode & mode)

    def _blob(self, ref: BlobRef) -> str:
        return f"{self._root}/{blob_path(ref.id)}"

    def _error(self, what: str, error: OSError) -> StoreError:
        where = f" ({error.filename})" if error.filename else ""
        return StoreError(f"{what} the store {self.location}: {error.strerror}{where}")


def _list_blobs(top: str, above: str) -> Iterator[StoredBlob]:
    with beneath.directory(top, f"data/{above}") as directory, os.scandir(directory) as entries:
        for entry in entries:
            name = above + entry.name
            if _BLOB_NAME.fullmatch(name) and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield StoredBlob(Digest(bytes.fromhex(name)), status.st_size, int(status.st_mtime))


def open_store(location: str) -> DirectoryStore:
    """The store at `location`. Raises StoreError if there is none."""
    path = Path(location).absolute()
    try:
        os.stat(path / HEAD)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"not a store: {location} (make one with: cvfs-publisher init {location} --name NAME)"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot use the store {location}: {error.strerror}") from error
    return DirectoryStore(path)


def create_store(location: str) -> DirectoryStore:
    """An empty store in a new or empty directory; it becomes one that `open_store` knows when its head is written."""
    path = Path(location).absolute()
    try:
        os.makedirs(path, exist_ok=True)
        if (path / HEAD).exists():
            raise StoreError(f"already a store: {location}")
        if set(os.listdir(path)) - {_OWN, "data", DIRECTORY}:
            raise StoreError(f"not empty: {location}")
        if _has_history(path / DIRECTORY):
            raise StoreError(f"a store that has lost its {HEAD}: {location} (copy it from a mirror)")
        store = DirectoryStore(path)
        for name in (_TEMPORARY, "data", DIRECTORY):
            store.make_directory(name)
    except OSError as error:
        raise StoreError(f"cannot make a store in {location}: {error.strerror}") from error
    return store


def _has_history(metadata: Path) -> bool:
    """Whether more was ever signed here than what a store begins with."""
    return any(metadata.glob("[!1]*.json")) or any(metadata.glob("1[!.]*.json"))
