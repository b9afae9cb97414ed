"""Unsealed packs that the workers of a mount share: what one has decompressed, the others only map.

Each is a file of a directory that no other user can enter, in memory where the runtime directory is. It has its name
once it is whole, and is never changed: whoever has mapped it keeps its bytes, whatever becomes of the name. That goes
when the worker that made it lets go of the pack. Nothing in it is believed: each piece is verified when it is cut.
"""

import contextlib
import errno
import itertools
import logging
import mmap
import os
import weakref
from pathlib import Path
from typing import Final

from cvfs.format.blob import unseal
from cvfs.model import BlobRef, Digest

log = logging.getLogger(__name__)

_AT_ONCE: Final = mmap.MAP_SHARED | mmap.MAP_POPULATE


class Unsealed:
    """Of one worker. Until `share_in` was called, and where that directory fails, there is nobody to share with."""

    def __init__(self) -> None:
        self._directory: str | None = None
        self._serial = itertools.count()

    def share_in(self, directory: Path) -> None:
        """Share what is in `directory` from now on. What is there may be of a worker that was killed, so it goes; those
        who have it mapped do not mind."""
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            for path in directory.iterdir():
                path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("workers do not share packs, in %s: %s", directory, error.strerror)
        else:
            self._directory = str(directory)

    def has(self, ref: BlobRef) -> bool:
        """Whether another worker has unsealed a pack."""
        return self._directory is not None and os.path.exists(self._path(ref.id))

    def find(self, ref: BlobRef) -> memoryview | None:
        """The plain bytes of a pack that another worker has unsealed; 2 us where none has."""
        if self._directory is None:
            return None
        try:
            fd = os.open(self._path(ref.id), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            return memoryview(_map(fd)) if os.fstat(fd).st_size == ref.plain_size else None
        finally:
            os.close(fd)

    def unseal(self, ref: BlobRef, stored: bytes, source: str) -> bytes | memoryview:
        """As `cvfs.format.blob.unseal`, and for the other workers too. In a thread: 3 ms and 0.3 ms for each MiB."""
        plain = unseal(ref, stored, source)
        if self._directory is None:
            return plain
        path = self._path(ref.id)
        unfinished = f"{path}.{os.getpid()}-{next(self._serial)}"
        try:
            mapped = _write(unfinished, plain)
            os.rename(unfinished, path)
        except OSError as error:
            log.debug("a pack is not shared: %s", error)
            _remove(unfinished)
            return plain
        weakref.finalize(mapped, _remove, path)
        return memoryview(mapped)

    def _path(self, pack: Digest) -> str:
        return f"{self._directory}/{pack.hex()}"


def _write(path: str, plain: bytes) -> mmap.mmap:
    """A new file, mapped. It is written by write(2): where memory has run out that is an error, and by way of a mapping
    the end of the process."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, plain) < len(plain):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _map(fd)
    finally:
        os.close(fd)


def _map(fd: int) -> mmap.mmap:
    """All of a file, mapped at once and not page by page as it is read."""
    return mmap.mmap(fd, 0, flags=_AT_ONCE, prot=mmap.PROT_READ)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
