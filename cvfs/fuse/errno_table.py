"""The one table from our errors to errno: what a system call on a mount answers."""

import errno

import trio

from cvfs.errors import CvfsError, PathError, TooSlowError


def errno_of(error: BaseException) -> int:
    """The errno for `error`. Whatever is not there or not right is EIO; only a passed deadline is told apart."""
    if isinstance(error, PathError):
        return error.errno
    if isinstance(error, TooSlowError | trio.TooSlowError):
        return errno.ETIMEDOUT
    return errno.EIO


def is_expected(error: BaseException) -> bool:
    """Whether `error` is one that cvfs raises on purpose; anything else is a bug, to be logged with its traceback."""
    return isinstance(error, CvfsError | trio.TooSlowError)
