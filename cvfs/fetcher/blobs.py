"""Stored blobs: asked of the mirrors once, whichever process wants them; and the threads that work on them."""

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
import trio

from cvfs.cache import Cache
from cvfs.cache.locks import NO_LOCK, Lock
from cvfs.errors import CacheError, IntegrityError, TooSlowError
from cvfs.flights import Flights, Room
from cvfs.mirrors import Mirrors
from cvfs.model import BlobRef

log = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 8
_KEEPERS = 4
"""Threads that put into the cache what was fetched: others, so that no reader waits for a disk that is full or slow."""

_LOCK_POLL_S = 0.002
_QUIET_S = 60.0


class Counters(msgspec.Struct):
    """Since the start. A hit is a piece or page that was in memory or in the cache; a miss needed a mirror. `ahead` are
    the packs that were brought before anyone asked for them."""

    hits: int = 0
    misses: int = 0
    fetched_blobs: int = 0
    fetched_bytes: int = 0
    ahead: int = 0
    uncached: int = 0
    integrity_errors: int = 0


class Blobs:
    """What pages and pieces need alike: mirrors, cache, flights that run in `nursery`, threads, and counters."""

    def __init__(self, mirrors: Mirrors, cache: Cache, nursery: trio.Nursery, deadline_s: float) -> None:
        self._mirrors = mirrors
        self.cache = cache
        self.nursery = nursery
        self.flights = Flights(nursery)
        self.counters = Counters()
        self._deadline_s = deadline_s
        self._threads = trio.CapacityLimiter(_THREADS)
        self._keepers = trio.CapacityLimiter(_KEEPERS)
        self._quiet_until = 0.0
        self._stores_under_way = 0
        self._all_stored = trio.lowlevel.ParkingLot()

    def deadline(self) -> float:
        """Of what is begun now, on trio's clock."""
        return trio.current_time() + self._deadline_s

    async def fetch(self, ref: BlobRef, deadline: float) -> bytes:
        """The stored bytes of a blob, verified."""
        try:
            stored = await self._mirrors.fetch_blob(ref, deadline - trio.current_time())
        except IntegrityError:
            self.counters.integrity_errors += 1
            raise
        self.counters.fetched_blobs += 1
        self.counters.fetched_bytes += len(stored)
        return stored

    async def lock(self, ref: BlobRef, deadline: float) -> Lock:
        """Be the one process that fetches `ref`. One that takes more than half of the time is not waited for."""
        with trio.move_on_at(deadline - self._deadline_s / 2):
            while True:
                lock = self.cache.locks.try_lock(ref.id)
                if lock is not None:
                    return lock
                await trio.sleep(_LOCK_POLL_S)
        return NO_LOCK

    async def make_room(self, room: Room, ref: BlobRef, deadline: float) -> Callable[[], None]:
        """Wait until a blob may be under way with the others in `room`; returns what ends that."""
        size = ref.stored_size + ref.plain_size
        with trio.move_on_at(deadline):
            await room.take(size)
            return partial(room.give_back, size)
        raise TooSlowError(f"blob {ref.id.hex()}", "too much is under way before it")

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._threads)

    def store_soon(self, store: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Begin a task that puts into the cache what was fetched."""
        self._stores_under_way += 1
        self.nursery.start_soon(self._storing, store, args)

    async def wait_until_stored(self) -> None:
        """Return when nothing is on its way into the cache; what did not get there was counted as uncached."""
        await trio.lowlevel.checkpoint()
        while self._stores_under_way:
            await self._all_stored.park()

    async def keep(self, work: Callable[..., T], *args: Any) -> T | None:
        """What `work` returns, which puts into the cache what was fetched; None if it cannot, which harms nobody.

        Finished also if who wanted it ends the client at once. For tasks of `nursery`: whatever goes wrong, they end
        well, for their end by an error would be that of the mount.
        """
        try:
            with trio.CancelScope(shield=True):
                return await trio.to_thread.run_sync(work, *args, limiter=self._keepers)
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            self.degraded(error)
        return None

    async def _storing(self, store: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
        try:
            await store(*args)
        finally:
            self._stores_under_way -= 1
            if not self._stores_under_way:
                self._all_stored.unpark_all()

    def degraded(self, error: Exception) -> None:
        """The disk failed: say so once a minute, and go on without it. What is no CacheError is a bug, told as one."""
        self.counters.uncached += 1
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_S
            expected = isinstance(error, CacheError)
            log.warning("%s: serving uncached", error if expected else repr(error), exc_info=not expected)
