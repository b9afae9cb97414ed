"""Files and directories beneath a directory, opened name by name: no symbolic link leads out of it.

Those who share a store by its group can put links into it at any moment, and root may be who follows them. Paths are
relative to `top`, which is the user's to name, and may be a link itself. Whoever opens a descriptor here closes it.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def directory(top: str, relative: str = "", mode: int | None = None) -> Iterator[int]:
    """The descriptor of a directory, open within the block. With `mode`, it and those above it are made, with these
    permissions, where they are not there.

    Raises OSError, also where something else, or a symbolic link, is in the place of one of them.
    """
    descriptor = os.open(top, _DIRECTORY)
    try:
        at = top
        for name in relative.split("/") if relative else ():
            at = f"{at}/{name}"
            above, descriptor = descriptor, _enter(descriptor, name, at, mode)
            os.close(above)
        yield descriptor
    finally:
        os.close(descriptor)


def open_file(top: str, relative: str, flags: int = os.O_RDONLY) -> int:
    """The descriptor of a regular file that is there. Raises OSError, also if it is anything else."""
    above, _, name = relative.rpartition("/")
    with directory(top, above) as parent:
        # Without O_NONBLOCK, a fifo would have us wait for whoever writes to it.
        descriptor = _open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, parent, f"{top}/{relative}")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", f"{top}/{relative}")
    return descriptor


def new_file(parent: int, name: str, flags: int) -> int:
    """The descriptor of a file that was made now, in an open directory. Raises FileExistsError and other OSError."""
    return os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent)


def _enter(parent: int, name: str, at: str, mode: int | None) -> int:
    try:
        return _open(name, _DIRECTORY | os.O_NOFOLLOW, parent, at)
    except FileNotFoundError:
        if mode is None:
            raise
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        return _open(name, _DIRECTORY | os.O_NOFOLLOW, parent, at)
    descriptor = _open(name, _DIRECTORY | os.O_NOFOLLOW, parent, at)
    with suppress(OSError):  # A file system may have no permissions; and another may have put theirs there meanwhile.
        if os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, mode)
    return descriptor


def _open(name: str, flags: int, parent: int, at: str) -> int:
    """open(2), with errors that name the whole path."""
    try:
        return os.open(name, flags, dir_fd=parent)
    except OSError as error:
        text = "It is a symbolic link" if error.errno == errno.ELOOP else os.strerror(error.errno or errno.EIO)
        raise OSError(error.errno, text, at) from None
