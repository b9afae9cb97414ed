"""Where a mount point really is, found without asking what is mounted there."""

import os
from pathlib import Path
from typing import Final

from cvfs.errors import ConfigError
from cvfs.fuse.mountinfo import parse_mounts

_MOST_LINKS: Final = 40
"""As many as the kernel follows (path_resolution(7))."""


def find_place(directory: Path) -> Path:
    """The canonical path of a directory to mount on, which need not exist.

    Links are followed to the end: the path of a link is none under which the kernel lists a mount. But whether the end
    is a link is not asked of a mount point, for what is mounted there may hang, or be dead. Raises ConfigError: the
    links go round in a circle.
    """
    mounted = {each.directory for each in parse_mounts(Path("/proc/self/mountinfo").read_bytes())}
    place = _below_real_parent(directory.absolute())
    for _ in range(_MOST_LINKS):
        if place in mounted:
            return place
        try:
            target = os.readlink(place)
        except OSError:  # it is no link, or not there
            return place
        place = _below_real_parent(place.parent / target)
    raise ConfigError(f"cannot mount on {directory}: too many symbolic links, which seem to lead back to each other")


def _below_real_parent(path: Path) -> Path:
    """`path` with all links followed but the last; whatever it is the name of is not looked at."""
    if path.name in ("", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent), path.name)
