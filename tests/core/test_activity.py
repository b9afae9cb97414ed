"""A pause is told once, after something was done."""

import trio
import trio.testing

from cvfs.fetcher.activity import Activity


def test_a_pause_comes_after_activity_and_only_once() -> None:
    trio.run(_watch_pauses, clock=trio.testing.MockClock(autojump_threshold=0))


async def _watch_pauses() -> None:
    activity, pauses = Activity(), []

    async def watch() -> None:
        while True:
            await activity.wait_for_pause(5)
            pauses.append(trio.current_time() - started)

    async with trio.open_nursery() as nursery:
        started = trio.current_time()
        nursery.start_soon(watch)
        await trio.sleep(100)
        assert pauses == []
        for _ in range(10):
            activity.note()
            await trio.sleep(4)
        await trio.sleep(100)
        assert len(pauses) == 1
        assert 141 <= pauses[0] <= 146
        nursery.cancel_scope.cancel()
