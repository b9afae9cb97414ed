"""The kernel's caches are the whole machine's: tests that run at the same time agree on when they are dropped."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_AGREED = Path(tempfile.gettempdir()) / f"cvfs-tests-{os.geteuid()}.kernel-caches"


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """No test drops them meanwhile. What is in the context must not drop them itself."""
    with _holding(fcntl.LOCK_SH):
        yield


def drop() -> None:
    """Names, attributes and pages of all mounts on the machine, as far as nobody uses them."""
    with _holding(fcntl.LOCK_EX):
        Path("/proc/sys/vm/drop_caches").write_text("3")


@contextlib.contextmanager
def _holding(kind: int) -> Iterator[None]:
    descriptor = os.open(_AGREED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)
