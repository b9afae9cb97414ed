"""A mount of the channel is taken away: by a worker, or at the end by the supervisor.

That runs `python -m cvfs.fuse.removal POINT DEVICE [if-dead]`. It may have older code than this: the name and the
arguments have to stay.
"""

import contextlib
import os
import sys
from pathlib import Path

from cvfs.errors import MountError
from cvfs.fuse import kernel
from cvfs.fuse.mountinfo import find_mount_of, is_mounted


def take_away(point: str, device: str, *, at_once: bool = False, if_dead: bool = False) -> None:
    """Unmount lazily what is mounted on `point` if it is the mount `device`, not another that has come there. With
    `at_once` all that waits for it, or uses it, gets an error.

    `if_dead` is for whoever is not connected to it any more: then the number may be that of another by now, which the
    kernel uses again at once, so only a mount that nobody serves is taken away.

    An automounter that has just unmounted it would mount it again if anybody else but itself looked at `point`.
    """
    if is_mounted(Path(point), device) and not (if_dead and not _is_dead(point)):
        with contextlib.suppress(MountError):
            kernel.detach(Path(point), lazy=True, abort=at_once)


def _is_dead(point: str) -> bool:
    try:
        os.statvfs(point)
    except OSError as error:
        return error.errno in kernel.DEAD
    return False


def is_to_be_made_anew(point: str) -> bool:
    """Whether a mount on `point` that was lost, and taken away, is to be mounted again by who served it. Not if another
    is there by now, nor below an automounter, which mounts when somebody comes."""
    mounted = find_mount_of(Path(point))
    return mounted is None or (mounted.directory != Path(point) and mounted.kind != "autofs")


if __name__ == "__main__":
    take_away(sys.argv[1], sys.argv[2], at_once=True, if_dead="if-dead" in sys.argv[3:])
