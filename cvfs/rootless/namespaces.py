"""Namespaces as a plain user can make them, and mounts inside of them: a thin layer over the system calls.

Source: user_namespaces(7), pid_namespaces(7), mount_namespaces(7).
"""

import ctypes
import errno
import os
import signal
from pathlib import Path
from typing import Final

from cvfs.errors import MountError

MS_BIND, MS_REC, MS_MOVE, MS_SLAVE = 0x1000, 0x4000, 0x2000, 0x80000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
_PR_SET_PDEATHSIG: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)

_SWITCHES: Final = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "an AppArmor profile that allows `userns` to it"),
)
"""What forbids user namespaces on distributions: a file, the value that does, and what an administrator can do."""


def enter_namespaces() -> None:
    """A PID namespace for the children of this process. A plain user gets a user namespace as well, and is root in it;
    outside of it nothing changes. Raises MountError: it is forbidden here."""
    uid, gid = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWPID | (_CLONE_NEWUSER if uid else 0))
    if uid:
        _map_ids(uid, 0, gid, 0)


def own_mounts() -> None:
    """From now on what this process mounts is seen by it and its children alone. Raises MountError."""
    _unshare(_CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_SLAVE)


def become(uid: int, gid: int) -> None:
    """From the root of a namespace made by `enter_namespaces` back to who made it, in one more user namespace."""
    if os.geteuid() != uid:
        _unshare(_CLONE_NEWUSER)
        _map_ids(0, uid, 0, gid)


def die_with_parent() -> None:
    """Be killed when the parent process ends, however it does."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises MountError."""
    words = os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), data.encode()
    if _libc.mount(*words):
        number = ctypes.get_errno()
        raise MountError(
            f"cannot mount on {target} in a namespace of one's own: {os.strerror(number)}{_remedy(number)}"
        )


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        number = ctypes.get_errno()
        raise MountError(f"cannot make namespaces for the command: {os.strerror(number)}{_remedy(number)}")


def _map_ids(outer_uid: int, inner_uid: int, outer_gid: int, inner_gid: int) -> None:
    """Who is who in a user namespace just made: one user and one group, which is all that a plain user may map."""
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{inner_uid} {outer_uid} 1")
        Path("/proc/self/gid_map").write_text(f"{inner_gid} {outer_gid} 1")
    except OSError as error:
        raise MountError(f"cannot make a user namespace: {error.strerror}{_remedy(error.errno or 0)}") from None


def _remedy(number: int) -> str:
    """What an administrator can do about it, if something on this host forbids user namespaces to plain users."""
    if number not in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS):
        return ""
    for path, value, remedy in _SWITCHES:
        try:
            if Path(path).read_text().strip() == value:
                return (
                    f"; this host forbids user namespaces to plain users: its administrator can allow them ({remedy})"
                )
        except OSError:
            continue
    return "; inside of a container it needs one that may make namespaces (--security-opt seccomp=unconfined)"
