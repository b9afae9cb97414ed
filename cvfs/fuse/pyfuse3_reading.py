"""How pyfuse3's tasks wait for the next request: as the channel does, not twice around trio's loop for each.

pyfuse3 finds what it needs of trio in a variable of its module, so that it can run under asyncio as well. What is put
there is trio, but for two things: the lock that its tasks wait for, and what the one that has it waits with.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import trio

from cvfs.fuse.lingering import Linger


class _Lock:
    """Taken where it is free, also before those who wait for it: whoever has answered goes on, without waking another.

    They are woken when it is let go, and find it taken, unless who had it waits for something else by then.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._is_taken:
            await self._waiting.park()
        self._is_taken = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_taken = False
        self._waiting.unpark()


class _Lowlevel:
    """`trio.lowlevel`, where the one descriptor that is waited for is that of the mount."""

    def __init__(self, is_any_under_way: Callable[[], object]) -> None:
        self._is_any_under_way = is_any_under_way
        self._linger: Linger | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, descriptor: int) -> None:
        if self._linger is None:
            self._linger = Linger(descriptor)
        if not self._linger.is_next(self._is_any_under_way()):
            await trio.lowlevel.wait_readable(descriptor)


class Trio:
    """What pyfuse3 calls trio. `is_any_under_way()` says whether a request waits for anything."""

    Lock = _Lock

    def __init__(self, is_any_under_way: Callable[[], object]) -> None:
        self.lowlevel = _Lowlevel(is_any_under_way)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)
