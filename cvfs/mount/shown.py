"""Which revision of each repository a mount shows: what its workers agree on, and what the next one goes on with.

A file in the runtime directory, which no other user can enter, replaced as a whole: a worker may be killed at any time.
It goes with the mount.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cvfs.flock import wait_lock
from cvfs.format.manifest import decode_manifest, encode_manifest
from cvfs.model import Manifest

log = logging.getLogger(__name__)


class _Revision(msgspec.Struct, frozen=True):
    """Manifests as text: the one that is shown, and the one before while the kernel may believe something of it."""

    manifest: str
    previous: str | None = None


class Shown:
    """What is shown of each repository, by the name that the mount has for it. `path` None: nobody else has to know."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._revisions: dict[str, _Revision] = {}
        self._version: tuple[int, ...] = ()

    def attach(self, path: Path) -> None:
        """Let other workers know from now on what is shown; what is in `path` is of a mount that has ended."""
        self._path = path
        self._write(path, self._revisions)

    def files(self) -> list[Path]:
        """What has to be removed with the mount."""
        return [self._path, self._lock_path(self._path)] if self._path else []

    def names(self) -> list[str]:
        """The repositories of which something is shown."""
        return sorted(self._read())

    def manifest(self, name: str) -> Manifest | None:
        """What is shown of a repository; None if nobody has opened it yet."""
        revision = self._read().get(name)
        return None if revision is None else decode_manifest(revision.manifest.encode())

    def previous(self, name: str) -> Manifest | None:
        """What was shown before, if the kernel has not been told of the change yet."""
        revision = self._read().get(name)
        text = revision.previous if revision else None
        return None if text is None else decode_manifest(text.encode())

    def claim(self, name: str, manifest: Manifest) -> Manifest:
        """Show `manifest` of a repository, unless another worker shows one already: that one is it then."""
        with self._changed() as revisions:
            revision = revisions.setdefault(name, _Revision(encode_manifest(manifest).decode()))
        return decode_manifest(revision.manifest.encode())

    def switch(self, name: str, new: Manifest, old: Manifest) -> bool:
        """Show `new` from now on; the kernel has yet to be told. False: a newer one is shown already, as after a reload
        during which both the former first worker and the new one have looked for what is new."""
        with self._changed() as revisions:
            shown = revisions.get(name)
            if shown is not None and decode_manifest(shown.manifest.encode()).revision > new.revision:
                return False
            revisions[name] = _Revision(encode_manifest(new).decode(), encode_manifest(old).decode())
        return True

    def drop(self, name: str) -> None:
        """Nothing is shown of it: who opens it next says what is."""
        with self._changed() as revisions:
            revisions.pop(name, None)

    def settle(self, name: str) -> None:
        """The kernel has been told."""
        with self._changed() as revisions:
            if name in revisions:
                revisions[name] = msgspec.structs.replace(revisions[name], previous=None)

    @contextmanager
    def _changed(self) -> Iterator[dict[str, _Revision]]:
        """What there is, to be changed by one worker at a time."""
        if self._path is None:
            yield self._revisions
            return
        try:
            descriptor = _lock(self._lock_path(self._path))
        except OSError as error:  # the directory goes at logout, or is full: what this worker knows has to do
            _warn(self._path, error)
            yield self._read()
            return
        try:
            revisions = dict(self._read())
            yield revisions
            self._write(self._path, revisions)
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, _Revision]:
        """What the file says: read again only when another has taken its place."""
        if self._path is None:
            return self._revisions
        try:
            status = os.stat(self._path)
            version = status.st_ino, status.st_mtime_ns, status.st_size
            if version != self._version:
                self._revisions = msgspec.json.decode(self._path.read_bytes(), type=dict[str, _Revision])
                self._version = version
        except FileNotFoundError:
            pass  # not yet written, or lost with its directory: what was known of it still holds
        return self._revisions

    def _write(self, path: Path, revisions: dict[str, _Revision]) -> None:
        self._revisions = revisions
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            temporary.write_bytes(msgspec.json.encode(revisions))
            temporary.rename(path)
        except OSError as error:
            _warn(path, error)

    @staticmethod
    def _lock_path(path: Path) -> Path:
        return path.with_suffix(".lock")


def _lock(path: Path) -> int:
    """The descriptor to close afterwards. Raises OSError: there is no such directory, or another worker is frozen."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        wait_lock(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _warn(path: Path, error: OSError) -> None:
    log.warning("other workers cannot be told what is shown, in %s: %s", path, error.strerror)
