"""The one table from our errors to errno: what a system call on a mount answers."""

import errno
import logging

import trio

from cvfs.errors import CvfsError, PathError, TooSlowError

log = logging.getLogger(__name__)


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


def refusal(request: str, error: Exception) -> int:
    """The errno for `error`, which kept `request` from an answer, once it has been logged."""
    number = errno_of(error)
    if not is_expected(error):
        log.error("%s failed", request, exc_info=error)
    elif number in (errno.EIO, errno.ETIMEDOUT):
        log.error("%s: %s", request, error)
    return number
