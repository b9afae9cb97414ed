"""Every error of ours, and some that are not, has one errno."""

import errno
from collections.abc import Iterator

import pytest
import trio

from cvfs import errors
from cvfs.fuse.errno_table import errno_of, is_expected

INSTANCES: dict[type[errors.CvfsError], errors.CvfsError] = {
    errors.PathError: errors.PathError(errno.ENOTDIR, b"x"),
    errors.StaleInodeError: errors.StaleInodeError(5),
    errors.IntegrityError: errors.IntegrityError("a", "b", "c"),
    errors.TransportError: errors.TransportError("u", "r"),
    errors.UnreachableError: errors.UnreachableError("u", "r"),
    errors.ProxyError: errors.ProxyError("u", "p", "r"),
    errors.StatusError: errors.StatusError("u", 404),
    errors.TruncatedError: errors.TruncatedError("u", "r"),
    errors.TooLargeError: errors.TooLargeError("u", "r"),
    errors.TooSlowError: errors.TooSlowError("u", "r"),
}
SPECIAL = {
    errors.PathError: errno.ENOTDIR,
    errors.StaleInodeError: errno.ESTALE,
    errors.TooSlowError: errno.ETIMEDOUT,
}


def every(kind: type[errors.CvfsError]) -> Iterator[type[errors.CvfsError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from every(below)


@pytest.mark.parametrize("kind", sorted(set(every(errors.CvfsError)), key=lambda kind: kind.__name__))
def test_every_error_of_ours_has_an_errno_and_one_line(kind: type[errors.CvfsError]) -> None:
    error = INSTANCES.get(kind) or kind("why")
    assert errno_of(error) == SPECIAL.get(kind, errno.EIO)
    assert is_expected(error)
    assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "number", "expected"),
    [
        (trio.TooSlowError(), errno.ETIMEDOUT, True),
        (OSError(errno.ENOENT, "ours, not the caller's"), errno.EIO, False),
        (KeyError("a bug"), errno.EIO, False),
        (ExceptionGroup("", [errors.PathError(errno.ENOENT)]), errno.EIO, False),
    ],
)
def test_other_errors(error: BaseException, number: int, expected: bool) -> None:
    assert (errno_of(error), is_expected(error)) == (number, expected)
