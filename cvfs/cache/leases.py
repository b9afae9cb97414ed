"""Which files somebody has open or mapped: the kernel grants a lease for writing (fcntl(2)) only on those that nobody
else has."""

import contextlib
import fcntl
import os
import signal
from pathlib import Path


class Leases:
    """Asks for the files of one cache directory. From any thread."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._are_granted: bool | None = None
        """Whether they are on this disk, None until that matters. NFSv4 refuses nearly all, as if all were open."""

    def is_unused(self, fd: int) -> bool:
        """Whether nobody has the file open or mapped but by `fd`, which must be closed soon. True if that is unknown:
        better is a file whose space comes back only later than a cache that stays full.

        Whoever opens it meanwhile, for some microseconds, is told EAGAIN; the holder of the lease gets a signal, which
        has to be one that nobody minds.
        """
        if _try_lease(fd):
            return True
        if self._are_granted is None:
            self._are_granted = self._probe()
        return self._are_granted is False

    def _probe(self) -> bool | None:
        """Whether there is a lease on a file that nobody else knows; None if none can be made. It is opened as the
        others are: whoever opens a file for writing may be given more. It is in no directory of files: there may be
        none."""
        path = self._cache / f".new-{os.urandom(8).hex()}"
        try:
            path.touch(0o600, exist_ok=False)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                return _try_lease(fd)
            finally:
                os.close(fd)
        except OSError:
            return None
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _try_lease(fd: int) -> bool:
    """False if it was refused; a file system that knows no leases refuses none."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
