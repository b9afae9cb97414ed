"""The runtime directory: one control socket for each mount that is served, and who serves it."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvfs.errors import ConfigError, MountError

ANSWER_BYTES = 1 << 20
ASK_DEADLINE_S = 3.0
_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Runtime:
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
                    _drop(path)
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

    def shown_of(self, mount_point: Path) -> Path:
        """Where the workers of the mount on `mount_point` keep what it shows."""
        return self.socket_of(mount_point).with_suffix(".shown")

    def drop(self, mount_point: Path) -> None:
        """Remove all that the mount on `mount_point`, which is gone, has left."""
        _drop(self.socket_of(mount_point))

    def try_lock(self) -> int | None:
        """A descriptor that keeps other mounts of this user waiting until it is closed; None if one is under way."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
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


def ask(path: Path, command: str, deadline_s: float = ASK_DEADLINE_S, **more: Any) -> dict[str, Any]:
    """The answer of the process behind a control socket. Raises MountError: nobody is there, or nothing comes."""
    try:
        with _connect(path, deadline_s) as connection:
            connection.sendall(json.dumps({"command": command, **more}).encode() + b"\n")
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as answer:
                decoded = json.loads(answer.read(ANSWER_BYTES))
    except (OSError, ValueError) as error:
        raise MountError(f"no answer from the process behind {path}: {error}") from None
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


def _drop(path: Path) -> None:
    """A socket, and the files of the same name."""
    for left in path.parent.glob(f"{path.stem}.*"):
        left.unlink(missing_ok=True)


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
