"""Mounts: a descriptor of /dev/fuse and a directory are tied together, and taken apart again.

With CAP_SYS_ADMIN (root, or root of a user namespace of one's own) by mount(2) and umount2(2), else through the setuid
helper `fusermount3`. Nothing here asks the mounted file system anything, so nothing waits for one that hangs.
Every function blocks for the moment of a system call or a helper; a MountError says in one line what to do.
"""

import ctypes
import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Final

from cvfs.errors import MountError
from cvfs.fuse.helper import mount_with_helper, unmount_with_helper
from cvfs.fuse.mountinfo import MountInfo, find_mount
from cvfs.fuse.options import MountOptions, escaped
from cvfs.fuse.protocol.codes import DEV_IOC_CLONE

DEVICE: Final = "/dev/fuse"
SUBTYPE: Final = "cvfs"

DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a mount answers that nobody serves any more."""

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
_CAP_SYS_ADMIN: Final = 21

_libc = ctypes.CDLL(None, use_errno=True)

_DEVICE_REMEDIES: Final = {
    errno.ENOENT: "load the module (modprobe fuse), or start the container with --device /dev/fuse",
    errno.ENODEV: "load the module (modprobe fuse)",
    errno.ENXIO: "load the module (modprobe fuse)",
    errno.EACCES: "run as root, or let users open it (chmod 666 /dev/fuse)",
    errno.EPERM: "start the container with --device /dev/fuse",
}
_MOUNT_REMEDIES: Final = {
    errno.EPERM: "run as root, inside a user namespace of your own (unshare -Urm), or install fuse3",
    errno.EACCES: "the directories above it must be open to you",
    errno.EBUSY: "something is mounted there already",
    errno.ENODEV: "the kernel has no FUSE; load the module (modprobe fuse)",
    errno.EINVAL: f"the kernel refused the options; {DEVICE} must be opened in the user namespace that mounts",
}
_UNMOUNT_REMEDIES: Final = {
    errno.EBUSY: "processes use it; end them, or unmount lazily",
    errno.EINVAL: "it is not a mount point",
    errno.EPERM: "run as the user who mounted it, or as root",
}


def mount(directory: Path, options: MountOptions) -> int:
    """Mount by whichever way this process may, on a directory that the caller has checked; what requests come from.
    Always read-only, with permissions checked by the kernel.

    The kernel's INIT is already waiting in that descriptor. The caller closes it; then the mount is dead, but still
    there.
    """
    if can_mount_directly():
        return mount_directly(directory, options)
    return mount_through_helper(directory, options)


def check_mount_point(directory: Path) -> None:
    """Raises MountError unless `directory` is an empty directory that nothing but an automounter is mounted on."""
    mounted = find_mount(directory)
    if mounted and mounted.kind != "autofs":
        raise MountError(_occupied(directory, mounted))
    try:
        with os.scandir(directory) as entries:
            occupied = next(entries, None) is not None
    except OSError as error:
        raise MountError(_unusable(directory, error)) from None
    if occupied:
        raise MountError(f"cannot mount on {directory}: it is not empty; choose or make an empty directory")


def can_mount_directly() -> bool:
    """Has this process CAP_SYS_ADMIN in its user namespace?"""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_ADMIN & 1)


def open_device() -> int:
    """A descriptor of /dev/fuse, closed at exec, of no connection yet."""
    try:
        return os.open(DEVICE, os.O_RDWR)
    except OSError as error:
        raise MountError(_line(f"cannot open {DEVICE}", error.errno, _DEVICE_REMEDIES)) from None


def clone_device(descriptor: int) -> int:
    """One more descriptor of a mounted connection (FUSE_DEV_IOC_CLONE), for a second reader with a queue of its own."""
    clone = open_device()
    try:
        fcntl.ioctl(clone, DEV_IOC_CLONE, struct.pack("=I", descriptor))
    except OSError as error:
        os.close(clone)
        raise MountError(_line("cannot open one more channel of the mount", error.errno, {})) from None
    return clone


def mount_directly(directory: Path, options: MountOptions) -> int:
    """mount(2) with a descriptor of our own; the descriptor."""
    descriptor = open_device()
    settings = f"fd={descriptor},rootmode={stat.S_IFDIR:o},user_id={os.geteuid()},group_id={os.getegid()}"
    settings = ",".join((settings, *_common_settings(options)))
    denied = (_MS_NOSUID, options.suid), (_MS_NODEV, options.dev), (_MS_NOEXEC, options.executable)
    flags = _MS_RDONLY | sum(flag for flag, allowed in denied if not allowed)
    source, kind = os.fsencode(options.source), f"fuse.{SUBTYPE}".encode()
    if _libc.mount(source, os.fsencode(directory), kind, ctypes.c_ulong(flags), settings.encode()):
        number = ctypes.get_errno()
        os.close(descriptor)
        raise MountError(_line(f"cannot mount on {directory}", number, _MOUNT_REMEDIES))
    return descriptor


def mount_through_helper(directory: Path, options: MountOptions) -> int:
    """fusermount3, which opens /dev/fuse and mounts; the descriptor. Always nosuid and nodev."""
    settings = (f"ro,fsname={escaped(options.source)},subtype={SUBTYPE}", *_common_settings(options))
    settings += () if options.executable else ("noexec",)
    return mount_with_helper(directory, ",".join(settings))


def unmount(directory: Path, *, lazy: bool = False) -> None:
    """Take the mount on `directory` away. `lazy`: at once for new users, for the present ones when they are done."""
    if not find_mount(directory):
        raise MountError(f"cannot unmount {directory}: nothing is mounted there")
    detach(directory, lazy=lazy)


def detach(directory: Path, *, lazy: bool, abort: bool = False) -> None:
    """Unmount `directory` without looking whether anything is mounted there. `abort`: end the connection before, where
    that is permitted; in a user namespace of one's own it was not, before Linux 6.15 or so."""
    if can_mount_directly():
        _unmount_directly(directory, (_MNT_DETACH if lazy else 0) | (_MNT_FORCE if abort else 0))
    else:
        unmount_with_helper(directory, lazy=lazy)


def set_read_ahead(directory: Path, size_kib: int) -> bool:
    """Let the kernel read ahead up to `size_kib` (by default 128) in files of the mount; False if it is not permitted.

    Only after INIT was answered, which sets it anew; needs a writable /sys, so real root.
    """
    mounted = find_mount(directory)
    if mounted is None:
        raise MountError(f"cannot set the read-ahead of {directory}: nothing is mounted there")
    try:
        Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb").write_text(str(size_kib), encoding="ascii")
    except OSError:
        return False
    return True


def _common_settings(options: MountOptions) -> tuple[str, ...]:
    return ("default_permissions", "allow_other") if options.allow_other else ("default_permissions",)


def _unmount_directly(directory: Path, flags: int) -> None:
    path, flags = os.fsencode(directory), flags | _UMOUNT_NOFOLLOW
    failed = _libc.umount2(path, flags)
    if failed and flags & _MNT_FORCE and ctypes.get_errno() == errno.EPERM:
        failed = _libc.umount2(path, flags & ~_MNT_FORCE)
    if failed:
        raise MountError(_line(f"cannot unmount {directory}", ctypes.get_errno(), _UNMOUNT_REMEDIES))


def _occupied(directory: Path, mounted: MountInfo) -> str:
    """Why there is no room, and how to make some."""
    if mounted.kind == f"fuse.{SUBTYPE}":
        return f"{mounted.source} is already mounted on {directory}; unmount it first (cvfs umount {directory})"
    return f"cannot mount on {directory}: {mounted.source} ({mounted.kind}) is mounted there"


def _unusable(directory: Path, error: OSError) -> str:
    remedies = {
        errno.ENOENT: f"make it first (mkdir -p {directory})",
        errno.ENOTDIR: "a directory is needed",
        errno.EACCES: "it must be open to you",
        errno.ENOTCONN: f"a dead mount is there or above it; unmount it lazily (umount -l {directory})",
    }
    return _line(f"cannot mount on {directory}", error.errno, remedies)


def _line(what: str, number: int | None, remedies: dict[int, str]) -> str:
    """`what`, what the kernel said, and what to do about it."""
    reason = os.strerror(number or 0)
    remedy = remedies.get(number or 0)
    return f"{what}: {reason}; {remedy}" if remedy else f"{what}: {reason}"
