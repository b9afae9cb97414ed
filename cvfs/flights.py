"""Single flight: however many tasks want one thing, it is brought once."""

from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import trio

T = TypeVar("T")

LONG_S = 0.5
"""A failure that took so long is told also to those who ask soon after it."""

REMEMBER_S = 0.25
"""How soon. The kernel asks for a page that could not be read once more, by itself and at once: without this, a reader
waits for two deadlines."""


class _Flight(Generic[T]):
    def __init__(self) -> None:
        self.landed = trio.Event()
        self.result: T | None = None
        self.error: Exception | None = trio.ClosedResourceError("the service has ended")
        self.traceback: TracebackType | None = None

    def land(self, result: T) -> None:
        self.result, self.error = result, None

    def crash(self, error: Exception) -> None:
        self.error, self.traceback = error, error.__traceback__


class Flights:
    """Work that is under way, by key. It runs in `nursery`, not in the task that asked first: a cancelled caller harms
    no other, and what was begun is finished for whoever asks next."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._flights: dict[Hashable, _Flight[Any]] = {}
        self._crashed: dict[Hashable, tuple[float, _Flight[Any]]] = {}

    async def join(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """What `work()` returns or raises: it is begun unless it is already under way for `key`.

        All that wait for one flight share its result; a failure that took long is shared for `REMEMBER_S` more. Raises
        trio.ClosedResourceError if the nursery was cancelled before the end. Always a checkpoint;
        cancelled: the flight goes on.
        """
        flight = self._flights.get(key) or self._recently_crashed(key)
        if flight is None:
            flight = _Flight()
            self._nursery.start_soon(self._run, key, flight, work)
            self._flights[key] = flight
        await flight.landed.wait()
        if flight.error is not None:
            raise flight.error.with_traceback(flight.traceback)  # each waiter begins with the same one
        return cast(T, flight.result)

    def _recently_crashed(self, key: Hashable) -> _Flight[Any] | None:
        if not self._crashed:
            return None
        now = trio.current_time()
        self._crashed = {known: crash for known, crash in self._crashed.items() if now < crash[0]}
        return self._crashed[key][1] if key in self._crashed else None

    async def _run(self, key: Hashable, flight: _Flight[T], work: Callable[[], Awaitable[T]]) -> None:
        started = trio.current_time()
        try:
            flight.land(await work())
        except Exception as error:  # noqa: BLE001 - it is the waiters'
            flight.crash(error)
            if trio.current_time() - started >= LONG_S:
                self._crashed[key] = trio.current_time() + REMEMBER_S, flight
        finally:
            del self._flights[key]
            flight.landed.set()


class Room:
    """Space for `size` of what is under way, given in the order in which it was asked for."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._turn = trio.Lock()
        self._freed = trio.Event()

    async def take(self, amount: int) -> None:
        """Wait for room; what is larger than all there is waits until it is alone. Cancelled: nothing is taken."""
        async with self._turn:
            while self._free < min(amount, self._size):
                self._freed = trio.Event()
                await self._freed.wait()
            self._free -= amount

    def give_back(self, amount: int) -> None:
        self._free += amount
        self._freed.set()
