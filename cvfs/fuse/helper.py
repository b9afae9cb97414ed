"""fusermount3, the setuid program of libfuse through which a plain user mounts and unmounts."""

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Final

from cvfs.errors import MountError

HELPER: Final = "fusermount3"
HELPER_DEADLINE_S: Final = 30.0
"""A guess. The helper asks the kernel alone, and a hung file system above the mount point is all it could wait for."""

_REMEDIES: Final = {"failed to open /dev/fuse: Permission denied": "let users open it (chmod 666 /dev/fuse)"}


def mount_with_helper(directory: Path, settings: str) -> int:
    """Have `directory` mounted with the comma-separated `settings`; the descriptor, which comes through a socket."""
    _demand_helper(f"cannot mount on {directory}")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            helper = _start(["-o", settings, "--", os.fspath(directory)], theirs)
        ours.settimeout(HELPER_DEADLINE_S)
        descriptor = _receive_descriptor(ours)
        problem = _finish(helper)
    if descriptor is None or problem:
        if descriptor is not None:
            os.close(descriptor)
        raise MountError(f"cannot mount on {directory}: {problem or f'{HELPER} sent no descriptor'}")
    return descriptor


def unmount_with_helper(directory: Path, *, lazy: bool) -> None:
    """Have `directory` unmounted, as umount(8) does it."""
    _demand_helper(f"cannot unmount {directory}")
    problem = _finish(_start(["-u", *(["-z"] if lazy else []), "--", os.fspath(directory)], None))
    if problem:
        raise MountError(f"cannot unmount {directory}: {problem}")


def _demand_helper(what: str) -> None:
    if not shutil.which(HELPER):
        raise MountError(f"{what}: not root, and no {HELPER}; install fuse3, or use unshare -Urm")


def _start(arguments: list[str], channel: socket.socket | None) -> subprocess.Popen[bytes]:
    """The helper, with its end of the socket for the descriptor if it is to mount."""
    environment = os.environ | {"LC_ALL": "C"}
    descriptors: tuple[int, ...] = ()
    if channel:
        descriptors = (channel.fileno(),)
        environment["_FUSE_COMMFD"] = str(channel.fileno())
    return subprocess.Popen(
        [HELPER, *arguments],
        env=environment,
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _receive_descriptor(channel: socket.socket) -> int | None:
    """What the helper sends with SCM_RIGHTS; None if it ended, or fell silent, without."""
    with contextlib.suppress(OSError):
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
            return descriptor
    return None


def _finish(helper: subprocess.Popen[bytes]) -> str:
    """What the helper complained of, in one line; nothing if it succeeded."""
    try:
        _, complaint = helper.communicate(timeout=HELPER_DEADLINE_S)
    except subprocess.TimeoutExpired:
        helper.kill()
        helper.communicate()
        return f"{HELPER} did not end within {HELPER_DEADLINE_S:g} s"
    if helper.returncode == 0:
        return ""
    lines = complaint.decode(errors="replace").split("\n")
    first = next((line for line in lines if line), f"{HELPER} failed with status {helper.returncode}")
    remedy = next((remedy for symptom, remedy in _REMEDIES.items() if symptom in first), "")
    return f"{first}; {remedy}" if remedy else first
