"""Where a mount point really is, found without asking what is mounted there."""

from pathlib import Path

from cvfs.errors import ConfigError
from cvfs.fuse.mountinfo import resolve


def find_place(directory: Path) -> Path:
    """The canonical path of a directory to mount on, which need not exist: the path of a link is none under which the
    kernel lists a mount. Raises ConfigError: the links go round in a circle."""
    try:
        return resolve(directory)
    except OSError:
        what = "too many symbolic links, which seem to lead back to each other"
        raise ConfigError(f"cannot mount on {directory}: {what}") from None
