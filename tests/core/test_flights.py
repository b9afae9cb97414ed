"""One thing is brought once; whoever waits shares what becomes of it."""

import traceback
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from cvfs.flights import REMEMBER_S, Flights, Room


def run(work: Callable[[Flights, trio.Nursery], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await work(Flights(nursery), nursery)
            nursery.cancel_scope.cancel()

    trio.run(main)


class Slow:
    """Work that ends when it is told to; counts how often it was begun."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go, self.begun, self.error = trio.Event(), 0, error

    async def __call__(self) -> int:
        self.begun += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return self.begun


def test_many_callers_one_flight() -> None:
    async def work(flights: Flights, _: trio.Nursery) -> None:
        slow, results = Slow(), []

        async def caller() -> None:
            results.append(await flights.join("key", slow))

        async with trio.open_nursery() as callers:
            for _ in range(5):
                callers.start_soon(caller)
            await trio.testing.wait_all_tasks_blocked()
            slow.go.set()
        assert (slow.begun, results) == (1, [1] * 5)
        assert await flights.join("key", slow) == 2  # landed is over

    run(work)


def test_cancelled_leader_harms_nobody() -> None:
    async def work(flights: Flights, _: trio.Nursery) -> None:
        slow, results = Slow(), []

        async def follower() -> None:
            results.append(await flights.join("key", slow))

        async with trio.open_nursery() as callers:
            leader = trio.CancelScope()

            async def lead() -> None:
                with leader:
                    await flights.join("key", slow)

            callers.start_soon(lead)
            await trio.testing.wait_all_tasks_blocked()
            callers.start_soon(follower)
            await trio.testing.wait_all_tasks_blocked()
            leader.cancel()
            await trio.testing.wait_all_tasks_blocked()
            slow.go.set()
        assert (leader.cancelled_caught, slow.begun, results) == (True, 1, [1])

    run(work)


def test_failure_is_shared_and_the_next_tries_again() -> None:
    async def work(flights: Flights, _: trio.Nursery) -> None:
        slow, failures = Slow(OSError("once")), []

        async def caller() -> None:
            try:
                await flights.join("key", slow)
            except OSError as error:
                failures.append(len(traceback.extract_tb(error.__traceback__)))

        async with trio.open_nursery() as callers:
            for _ in range(6):
                callers.start_soon(caller)
            await trio.testing.wait_all_tasks_blocked()
            slow.go.set()
        assert slow.begun == 1
        assert len(failures) == 6
        assert len(set(failures)) == 1  # tracebacks do not pile up
        slow.error = None
        assert await flights.join("key", slow) == 2

    run(work)


def test_keys_do_not_wait_for_each_other() -> None:
    async def work(flights: Flights, nursery: trio.Nursery) -> None:
        nursery.start_soon(flights.join, "slow", Slow())
        quick = Slow()
        quick.go.set()
        assert await flights.join("quick", quick) == 1

    run(work)


def test_end_of_the_service_is_an_error_for_who_waits() -> None:
    async def main() -> None:
        async with trio.open_nursery() as callers:
            async with trio.open_nursery() as service:
                flights = Flights(service)

                async def caller() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await flights.join("key", Slow())

                callers.start_soon(caller)
                await trio.testing.wait_all_tasks_blocked()
                service.cancel_scope.cancel()
            for _ in range(2):  # the second does not wait for a flight that never began
                with trio.fail_after(1), pytest.raises(RuntimeError):
                    await flights.join("key", Slow())

    trio.run(main)


def test_room_is_given_in_order_and_to_the_oversized_alone() -> None:
    async def main() -> None:
        room, log = Room(10), []

        async def take(amount: int) -> None:
            await room.take(amount)
            log.append(amount)

        async with trio.open_nursery() as nursery:
            for amount in (6, 25, 1):
                nursery.start_soon(take, amount)
                await trio.testing.wait_all_tasks_blocked()
            assert log == [6]  # the 1 would fit, but it is not its turn
            room.give_back(6)
            await trio.testing.wait_all_tasks_blocked()
            assert log == [6, 25]
            room.give_back(25)
        assert log == [6, 25, 1]

    trio.run(main)


def test_cancelled_wait_takes_no_room() -> None:
    async def main() -> None:
        room = Room(10)
        await room.take(10)
        with trio.move_on_after(0):
            await room.take(5)
        room.give_back(10)
        with trio.fail_after(1):
            await room.take(10)

    trio.run(main)


def test_a_failure_that_took_long_is_told_to_who_asks_at_once() -> None:
    """The kernel does: a page that was not read ahead it asks for once more."""
    begun = []

    async def fail_after(seconds: float) -> None:
        begun.append(seconds)
        await trio.sleep(seconds)
        raise OSError("no")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            flights = Flights(nursery)
            for seconds, times in ((0.4, 3), (30.0, 1)):
                begun.clear()
                for _ in range(3):
                    with pytest.raises(OSError, match="no"):
                        await flights.join("key", lambda seconds=seconds: fail_after(seconds))
                assert len(begun) == times
            await trio.sleep(REMEMBER_S)
            with pytest.raises(OSError, match="no"):
                await flights.join("key", lambda: fail_after(30.0))
            assert len(begun) == 2
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
