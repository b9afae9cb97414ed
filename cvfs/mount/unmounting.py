"""The end of a mount, asked for from outside of the process that serves it."""

import contextlib
import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path

from cvfs.errors import MountError
from cvfs.fuse.kernel import unmount
from cvfs.fuse.mountinfo import find_mount
from cvfs.mount.point import is_ours
from cvfs.mount.runtime import Runtime, server_pid

_END_DEADLINE_S = 15.0
_SHOWN = 4


def unmount_and_wait(directory: Path, runtime: Runtime, *, lazy: bool) -> None:
    """Unmount `directory` and wait until its daemon has ended; `lazy`: also while it is in use, and without waiting.

    Raises MountError, with who uses it where that can be found out.
    """
    mounted = find_mount(directory)
    if mounted is None:
        raise MountError(f"nothing is mounted on {directory}")
    if not is_ours(mounted):
        raise MountError(f"{directory} is not a mount of cvfs but of {mounted.source} ({mounted.kind}): use umount")
    pid = server_pid(runtime.socket_of(mounted.directory))
    daemon = _open_process(pid)
    try:
        try:
            unmount(mounted.directory, lazy=lazy)
        except MountError as error:
            raise MountError(_explain(mounted.directory, str(error))) from None
        if pid is None:  # it died, and could not clean up after itself
            runtime.drop(mounted.directory)
        if daemon is not None and not lazy and not select.select([daemon], [], [], _END_DEADLINE_S)[0]:
            raise MountError(f"{directory} is unmounted, but process {pid} did not end within {_END_DEADLINE_S:g} s")
    finally:
        if daemon is not None:
            os.close(daemon)


def find_users(directory: Path) -> Iterator[str]:
    """The processes that have something of a mount open, as "name (pid)"; only those that this user may look into."""
    inside = os.fspath(directory)
    for name in os.listdir("/proc"):
        if name.isdecimal() and any(_is_below(path, inside) for path in _used_paths(name)):
            yield f"{_name_of(name)} ({name})"


def _explain(directory: Path, reason: str) -> str:
    """What to tell of `reason`. It is looked at as a text: fusermount3, a program of its own, has nothing else."""
    if os.strerror(errno.EBUSY) not in reason:
        return reason
    users = list(find_users(directory))
    if not users:
        return f"{reason} (cvfs umount --lazy {directory})"
    shown = ", ".join(users[:_SHOWN]) + (f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else "")
    return f"cannot unmount {directory}: in use by {shown}; end them, or use cvfs umount --lazy {directory}"


def _open_process(pid: int | None) -> int | None:
    """A descriptor that becomes readable when the process ends."""
    if pid is None:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _used_paths(pid: str) -> Iterator[str]:
    """Working directory, root, open files and mapped files of a process; read from /proc alone, so nothing can hang."""
    links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root", f"/proc/{pid}/exe"]
    with contextlib.suppress(OSError):
        links += [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
    for link in links:
        with contextlib.suppress(OSError):
            yield os.readlink(link)
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            yield os.fsdecode(b"/" + line.rstrip(b"\n").partition(b"/")[2])


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def _name_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "?"
