"""The runtime directory: one control socket for each mount that is served, and who serves it."""

import contextlib
import errno
import hashlib
import json
import os
import re
import select
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from cvfs.errors import ConfigError, MountError
from cvfs.flock import try_lock

ANSWER_BYTES = 64 << 20
"""Of a mount of very many repositories: each that is in use takes about 2 KiB of a status."""
ASK_DEADLINE_S = 3.0
LOCK_DEADLINE_S = 15.0
"""For another mount of this user to be finished: longer than any takes that fails."""

_UCRED = struct.Struct("3i")
_OWNED = re.compile(r"[0-9a-f]{16}\.([0-9]+)(\.|$)")


class Runtime(msgspec.Struct, frozen=True):
    """The directory of this user's sockets. Other users can neither enter it nor put anything there."""

    directory: Path

    def prepare(self) -> None:
        """Make the directory, and drop the sockets of processes that are gone. Raises ConfigError if it is not ours."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = os.lstat(self.directory)
        except OSError as error:
            raise ConfigError(f"cannot use the runtime directory {self.directory}: {error.strerror}") from None
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            what = f"the runtime directory {self.directory} is not a directory of this user alone"
            raise ConfigError(f"{what}: remove it, or set CVFS_RUNTIME_DIR")
        self._drop_dead()

    def _drop_dead(self) -> None:
        """Unless a mount is under way, which may be about to take the place of what is dead."""
        lock = self.try_lock()
        if lock is None:
            return
        try:
            for path in self.sockets():
                if not _is_alive(path):
                    path.unlink(missing_ok=True)
            for path in self.directory.iterdir():
                owner = _owner_of(path)
                if owner is not None and not _is_there(owner):
                    path.unlink(missing_ok=True)
        finally:
            os.close(lock)

    def sockets(self) -> list[Path]:
        """The control sockets that are there, living or not."""
        try:
            return sorted(self.directory.glob("*.sock"))
        except OSError:
            return []

    def socket_of(self, mount_point: Path) -> Path:
        """The socket of the mount on `mount_point`, which is a canonical path."""
        return self.directory / f"{hashlib.sha256(os.fsencode(mount_point)).hexdigest()[:16]}.sock"

    def identity_of(self, mount_point: Path) -> tuple[Path, int]:
        """The socket of a mount, and its inode number: another mount may put another socket in its place.

        For who has just made it, and keeps others from making one.
        """
        path = self.socket_of(mount_point)
        try:
            return path, path.stat().st_ino
        except OSError as error:
            raise MountError(f"the control socket {path} is gone: {error.strerror}") from None

    def shown_of(self, mount_point: Path, supervisor: int) -> Path:
        """Where the workers of a mount keep what it shows. Of the mount, not of its mount point: one that was unmounted
        lazily goes on while it is in use, also when there is another in its place."""
        return self.socket_of(mount_point).with_suffix(f".{supervisor}.shown")

    def drop(self, mount_point: Path) -> None:
        """Remove all that the mount on `mount_point`, whose process is gone, has left."""
        with contextlib.suppress(FileNotFoundError):
            self.socket_of(mount_point).unlink()
            self._drop_dead()

    async def lock(self) -> int:
        """Be the only process of this user that mounts; the descriptor to close afterwards. Raises MountError: another
        takes too long."""
        import trio  # costs commands, which also need this module, a tenth of a second

        with trio.move_on_after(LOCK_DEADLINE_S):
            while True:
                descriptor = self.try_lock()
                if descriptor is not None:
                    return descriptor
                await trio.sleep(0.01)
        raise MountError(f"another mount is being made for {LOCK_DEADLINE_S:g} s already; see `cvfs status`")

    def try_lock(self) -> int | None:
        """A descriptor that keeps other mounts of this user waiting until it is closed; None if one is under way."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if not try_lock(descriptor):
            os.close(descriptor)
            return None
        return descriptor

    def listen(self, mount_point: Path) -> socket.socket:
        """A listening control socket. It appears under its name only once it can be connected to."""
        path = self.socket_of(mount_point)
        temporary = path.with_suffix(f".{os.getpid()}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short(temporary) as name:
                listener.bind(name)
            listener.listen(16)
            temporary.rename(path)
        except OSError as error:
            listener.close()
            temporary.unlink(missing_ok=True)
            raise MountError(f"cannot make the control socket {path}: {error.strerror}") from None
        return listener

    def listen_anew(self, mount_point: Path, is_mounted: Callable[[], bool]) -> socket.socket | None:
        """Listen again where the control socket of a mount is gone; None: there is one, perhaps of another mount that
        has taken the place of ours, or is about to, or ours is not there (`is_mounted`) any more.

        Raises ConfigError, MountError: it cannot be made.
        """
        self.prepare()
        try:
            lock = self.try_lock()
        except OSError as error:
            raise MountError(f"cannot use the runtime directory {self.directory}: {error.strerror}") from None
        if lock is None:
            return None
        try:
            is_free = not os.path.lexists(self.socket_of(mount_point)) and is_mounted()
            return self.listen(mount_point) if is_free else None
        finally:
            os.close(lock)


def ask(path: Path, command: str, deadline_s: float = ASK_DEADLINE_S, **more: Any) -> dict[str, Any]:
    """The answer of the process behind a control socket. Raises MountError: nobody is there, or nothing comes."""
    try:
        with _connect(path, deadline_s) as connection:
            connection.sendall(json.dumps({"command": command, **more}).encode() + b"\n")
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as answer:
                decoded = json.loads(answer.read(ANSWER_BYTES))
    except FileNotFoundError:
        why = "removed, and made anew when the mount next looks for a new revision; or in another runtime directory"
        raise MountError(f"there is no control socket {path}: {why}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MountError(f"no answer from the process behind {path}: {reason}") from None
    if not isinstance(decoded, dict) or "error" in decoded:
        raise MountError(f"the process behind {path} does not know how to answer {command!r}")
    return decoded


def server_pid(path: Path) -> int | None:
    """The process that listens on a control socket, as the kernel knows it; None if there is none."""
    try:
        with _connect(path, ASK_DEADLINE_S) as connection:
            pid, _, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError:
        return None
    return int(pid) or None


def _owner_of(path: Path) -> int | None:
    """The process that a file is for, if it is one of those that have one in their name."""
    found = _OWNED.match(path.name)
    return int(found[1]) if found else None


def _is_there(pid: int) -> bool:
    """Whether there is such a process, and more of it than what its parent has to reap. One in another PID namespace is
    not seen: it can do without what it has here."""
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        return error.errno != errno.ESRCH
    try:
        return not select.select([process], [], [], 0)[0]
    finally:
        os.close(process)


def _is_alive(path: Path) -> bool:
    try:
        _connect(path, ASK_DEADLINE_S).close()
    except OSError as error:
        return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def _connect(path: Path, deadline_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(deadline_s)
    try:
        with _short(path) as name:
            connection.connect(name)
    except OSError:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of `path` that fits into the 107 bytes of a socket's address, however deep the directory is."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
