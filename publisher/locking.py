"""Publishers that want the same thing take turns."""

import fcntl
from collections.abc import Callable

from cvfs.errors import StoreError

Waiting = Callable[[], None]
"""Called once if another publisher has to be waited for."""


def lock_file(descriptor: int, waiting: Waiting | None, busy: str) -> None:
    """Lock an open file (flock(2)), until it is closed. If another process has it, call `waiting` and wait for as long
    as it takes; without `waiting`, raise StoreError, which says `busy`. Raises OSError: there are no locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            raise StoreError(busy) from None
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
