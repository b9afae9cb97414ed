"""Single flight: however many tasks want one thing, it is brought once."""

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar, cast

import trio

T = TypeVar("T")


class _Flight(Generic[T]):
    def __init__(self) -> None:
        self.landed = trio.Event()
        self.result: T | None = None
        self.error: Exception | None = None


class Flights:
    """Work that is under way, by key. It runs in `nursery`, not in the task that asked first: a cancelled caller harms
    no other, and what was begun is finished for whoever asks next."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._flights: dict[Hashable, _Flight[Any]] = {}

    async def join(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """What `work()` returns or raises: it is begun unless it is already under way for `key`.

        All that wait for one flight share its result, failures too. Always a checkpoint; cancelled: the flight goes on.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            self._nursery.start_soon(self._run, key, flight, work)
        await flight.landed.wait()
        if flight.error is not None:
            raise flight.error
        return cast(T, flight.result)

    async def _run(self, key: Hashable, flight: _Flight[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            flight.result = await work()
        except Exception as error:
            flight.error = error
        finally:
            del self._flights[key]
            flight.landed.set()
