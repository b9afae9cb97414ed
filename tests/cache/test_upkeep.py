from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from cvfs.cache import Cache
from cvfs.errors import CacheError
from cvfs.fetcher.activity import Activity
from cvfs.mount.upkeep import explode_when_idle, keep_within_limits


def test_what_could_not_be_counted_is_counted_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after an hour, in which much might go uncached."""
    cache = Cache(tmp_path / "cache")
    cache.quota.ledger.change(lambda sums: sums._replace(boot=bytes(16)))
    recount, asked = cache.quota.ledger.recount, list[float]()
    monkeypatch.setattr(cache.quota.ledger, "recount", lambda count: None if len(asked) < 3 else recount(count))
    maintain = cache.quota.maintain

    def timed() -> bool:
        asked.append(trio.from_thread.run_sync(trio.current_time))
        return maintain()

    monkeypatch.setattr(cache.quota, "maintain", timed)

    async def work() -> None:
        with trio.move_on_after(3700):
            await keep_within_limits(cache.quota)

    trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0.2))
    assert [round(second - first) for first, second in pairwise(asked)] == [10, 10, 3600]
    assert cache.quota.ledger.read().counts == 1
    cache.close()


def test_packs_are_exploded_once_after_each_time_that_some_were_brought() -> None:
    """Also when that failed or was not finished: an idle mount is not woken up by what cannot be done."""

    class Failing:
        def __init__(self) -> None:
            self.activity = Activity()
            self.began: list[float] = []

        async def explode(self, rest: float) -> bool:
            self.began.append(trio.current_time())
            if len(self.began) == 2:
                raise CacheError("the disk failed")
            return len(self.began) == 3

    exploder = Failing()

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(explode_when_idle, exploder, trio.Lock())
            await trio.sleep(60)
            assert not exploder.began
            for number in range(1, 4):
                for _ in range(3):
                    exploder.activity.note()
                    await trio.sleep(1)
                assert len(exploder.began) == number - 1, "while packs are brought"
                await trio.sleep(60)
                assert len(exploder.began) == number
            nursery.cancel_scope.cancel()

    trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0.2))
