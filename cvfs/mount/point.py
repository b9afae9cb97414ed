"""The mount point before a mount: checked, and freed of a mount whose process died."""

import errno
import logging
import os
import threading
from pathlib import Path

from cvfs.fuse.kernel import SUBTYPE, check_mount_point, unmount
from cvfs.fuse.mountinfo import MountInfo, find_mount

log = logging.getLogger(__name__)

_PATIENCE_S = 2.0


def prepare_mount_point(directory: Path, *, nonempty: bool) -> None:
    """Raises MountError unless `directory` can be mounted on now. A dead cvfs mount on it is taken away first."""
    mounted = find_mount(directory)
    if mounted is not None and is_ours(mounted) and is_dead(directory):
        log.warning("taking away the mount of %s on %s, whose process is gone", mounted.source, directory)
        unmount(directory, lazy=True)
    if not (nonempty and find_mount(directory) is None and directory.is_dir()):
        check_mount_point(directory)


def is_ours(mounted: MountInfo) -> bool:
    return mounted.kind == f"fuse.{SUBTYPE}"


def is_dead(directory: Path) -> bool:
    """Whether a mount answers "Transport endpoint is not connected". One that does not answer at all is not dead."""
    outcome: list[int] = []

    def look() -> None:
        try:
            os.statvfs(directory)  # unlike the answer of stat(2), its is never cached
            outcome.append(0)
        except OSError as error:
            outcome.append(error.errno or 0)

    # A thread, because a system call on a mount that hangs cannot be given a deadline.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return outcome[:1] in ([errno.ENOTCONN], [errno.ECONNABORTED])


def canonical(directory: Path) -> Path:
    """The path under which the kernel lists a mount on `directory`."""
    mounted = find_mount(directory)
    if mounted is not None:
        return mounted.directory
    return Path(os.path.realpath(directory))
