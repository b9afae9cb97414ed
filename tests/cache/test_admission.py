"""Who may store where many store and evict at once: nobody is refused because of what others do at that moment."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cvfs import flock
from cvfs.cache import Cache, eviction, ledger
from cvfs.cache.shards import CachedFile, count
from cvfs.errors import CacheFullError
from cvfs.format.blob import digest
from cvfs.model import BlobRef, Location
from tests.cache.test_quota import LIMIT, SIZE, content, has, known, opened, store, used, worker
from tests.command import wait_until

PATIENT_S = 60


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = opened(tmp_path / "cache")
    yield cache
    cache.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def somebody_decides(cache: Cache) -> bool:
    """Whether nobody else may begin to store, as one has to be sure."""
    with (cache.directory.path / "usage").open("rb") as file:
        try:
            flock.wait_until_free(file.fileno(), ledger._GATE, 0)
        except TimeoutError:
            return True
    return False


def test_what_others_have_reserved_is_waited_for(cache: Cache, pool: ThreadPoolExecutor) -> None:
    """As long as it is not stored there is nothing to evict."""
    with cache.quota.reserve([SIZE] * 64) as reservation:
        stored = pool.submit(store, cache, 100)
        wait_until(lambda: somebody_decides(cache))
        for data in map(content, range(64)):
            reservation.fill(SIZE, lambda data=data: cache.objects.store(digest(data), data))  # type: ignore[misc]
    stored.result(PATIENT_S)
    assert has(cache, 100)
    assert used(cache) == known(cache) < 64 * SIZE


def test_files_that_are_open_at_the_moment_are_waited_for(
    cache: Cache, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvfs.cache.admission._OPEN_S", PATIENT_S)
    store(cache, *range(64))
    with contextlib.ExitStack() as readers:
        for number in range(64):
            readers.enter_context(open(cache.objects.path(digest(content(number))), "rb"))
        stored = pool.submit(store, cache, 100)
        wait_until(lambda: somebody_decides(cache))
    stored.result(PATIENT_S)
    assert has(cache, 100)
    assert used(cache) == known(cache)


def test_files_that_stay_open_are_not_waited_for_without_end(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvfs.cache.admission._OPEN_S", 0.01)
    store(cache, *range(64))
    with contextlib.ExitStack() as readers:
        for number in range(64):
            readers.enter_context(open(cache.objects.path(digest(content(number))), "rb"))
        with pytest.raises(CacheFullError):
            store(cache, 100)
    assert used(cache) == known(cache) == 64 * SIZE
    assert not somebody_decides(cache)


def test_sums_that_are_too_high_refuse_nobody(cache: Cache) -> None:
    """As a process has left them that was killed."""
    store(cache, *range(4))
    cache.quota.pins.put("repository", b"", [digest(content(number)) for number in range(4)], {})
    cache.quota.ledger.change(lambda sums: sums._replace(data=LIMIT))
    store(cache, 100)
    assert used(cache) == known(cache) == 5 * SIZE


def test_what_has_grown_is_taken_off_as_it_is_when_it_goes(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = digest(b"recipe"), content(1)
    places = [Location(at, SIZE, BlobRef(digest(b"pack"), SIZE, SIZE), 0, digest(data)) for at in (0, SIZE)]

    def store_chunk() -> None:
        place = places.pop()
        with cache.quota.reserve([SIZE]) as reservation:
            reservation.fill(SIZE, lambda: cache.large.store(recipe, 2 * SIZE, place, data))

    list_shard = eviction.list_shard

    def list_before_it_grows(cache: Path, kind: str, number: int) -> list[CachedFile]:
        found = list(list_shard(cache, kind, number))
        if found and places:
            store_chunk()
        return found

    store_chunk()
    monkeypatch.setattr(eviction, "list_shard", list_before_it_grows)
    assert cache.quota.evictor.evict(SIZE) == 2 * SIZE
    assert known(cache) == used(cache) == 0


def test_count_that_was_overtaken_by_another_does_not_undo_it(cache: Cache) -> None:
    """It began earlier and has met files that are gone."""
    store(cache, *range(60))
    cache.quota.ledger.change(lambda sums: sums._replace(boot=bytes(16)))  # so that they are not believed

    def counting() -> tuple[int, int]:
        found = count(cache.directory.path)
        cache.quota.evictor.evict(20 * SIZE)
        with cache.quota.ledger.storing_after(cache.quota._admission._count):
            store(cache, 100)
        return found

    assert cache.quota.ledger.recount(counting)
    assert known(cache) == used(cache) == 41 * SIZE


def test_who_has_decided_stores_beside_others_and_before_the_next_count(cache: Cache) -> None:
    store(cache, 1)
    with cache.quota.ledger.storing_after(lambda _: None), (cache.directory.path / "usage").open("rb") as other:
        assert not flock.try_lock(other.fileno())
        assert flock.try_lock(other.fileno(), shared=True)
        assert not somebody_decides(cache)


def test_processes_that_want_most_of_the_cache_each_get_their_turn(cache: Cache) -> None:
    """And those that count, evict and read meanwhile refuse nobody either."""
    workers = [worker(cache.directory.path, seed, 20, 12 * SIZE) for seed in range(4)]
    try:
        while any(each.poll() is None for each in workers):
            cache.quota.maintain()
            cache.quota.recount()
            for path in cache.directory.path.glob("objects/*/*"):
                with contextlib.suppress(OSError):
                    path.read_bytes()
    finally:
        for each in workers:
            each.kill()
    assert [each.wait() for each in workers] == [0, 0, 0, 0]
    cache.quota.recount()
    assert known(cache) == used(cache) <= LIMIT
