from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from cvfs.cache import Cache
from cvfs.mount.upkeep import keep_within_limits


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
