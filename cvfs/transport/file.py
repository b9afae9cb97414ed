"""file:// addresses: a store on a local or network directory, under the limits and errors of a server."""

import os
import stat

from cvfs.errors import StatusError, UnreachableError
from cvfs.transport.attempt import Attempt
from cvfs.transport.url import file_path


def get(attempt: Attempt, etag: str | None) -> tuple[bytes, str | None, bool]:
    """Data, ETag, and whether the file is still the one that `etag` names. Blocks; for a worker thread."""
    try:
        # O_NONBLOCK: opening a fifo must not wait for a writer.
        descriptor = os.open(file_path(attempt.url), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _read(descriptor, attempt, etag)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StatusError(attempt.url, 404, "no such file") from error
    except PermissionError as error:
        raise StatusError(attempt.url, 403, "permission denied") from error
    except OSError as error:
        raise UnreachableError(attempt.url, (error.strerror or str(error)).lower()) from error


def _read(descriptor: int, attempt: Attempt, etag: str | None) -> tuple[bytes, str | None, bool]:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise StatusError(attempt.url, 404, "not a regular file")
    current = f'"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"'
    if etag == current:
        return b"", current, True
    return attempt.read_body(lambda size: os.read(descriptor, size), status.st_size), current, False
