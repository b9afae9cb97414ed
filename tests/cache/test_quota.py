"""The limit of the cache: what is stored, what goes for it, and what the ledger knows."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvfs.cache import Cache
from cvfs.cache.index_files import FIRST_CAPACITY
from cvfs.cache.inode_table import size_of
from cvfs.cache.ledger import Sums
from cvfs.cache.quota import Limits
from cvfs.cache.shards import count, list_all
from cvfs.errors import CacheFullError
from cvfs.format.blob import digest
from cvfs.model import Digest
from tests.cache.disks import fill, needs_root, small_disk
from tests.publisher.stores import environment

KIB, MIB = 1 << 10, 1 << 20
SIZE = 8 * KIB
INDEX = size_of(FIRST_CAPACITY)
LIMIT = INDEX + 64 * SIZE

HOUR_S = 3600


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = opened(tmp_path / "cache")
    yield cache
    cache.close()


def opened(path: Path, limit: int = LIMIT, keep_free: int = 0) -> Cache:
    return Cache(path, Limits(limit, keep_free))


def content(number: int, size: int = SIZE) -> bytes:
    return number.to_bytes(8, "big") * (size // 8)


def store(cache: Cache, *numbers: int, size: int = SIZE) -> None:
    """As a pack of objects is stored."""
    with cache.quota.room([size] * len(numbers)) as room:
        for number in numbers:
            data = content(number, size)
            room.fill(size, lambda data=data: cache.objects.store(digest(data), data))  # type: ignore[misc]


def has(cache: Cache, number: int) -> bool:
    return digest(content(number)) in cache.objects


def age(cache: Cache, seconds: float, *numbers: int) -> None:
    """As if they had been used last so long ago."""
    for number in numbers:
        then = time.time() - seconds
        os.utime(cache.objects.path(digest(content(number))), (then, then))


def used(cache: Cache) -> int:
    """What there really is."""
    return sum(count(cache.directory.path))


def known(cache: Cache) -> int:
    sums = cache.quota.ledger.read()
    assert sums.is_known
    return sums.total


def test_the_sums_are_what_is_there(cache: Cache) -> None:
    store(cache, *range(10))
    cache.store_blob(Digest(digest(b"page")), b"page")
    assert known(cache) == used(cache) == 10 * SIZE + 4 * KIB
    assert cache.quota.use().metadata_bytes == 4 * KIB


def test_room_that_is_not_filled_is_given_back(cache: Cache) -> None:
    def store_one_of_two() -> None:
        with cache.quota.room([SIZE, SIZE]) as room:
            room.fill(SIZE, lambda: cache.objects.store(digest(content(1)), content(1)))
            raise KeyError

    with pytest.raises(KeyError):
        store_one_of_two()
    assert known(cache) == used(cache) == SIZE


def test_least_recently_used_goes_first_and_little_at_once(cache: Cache) -> None:
    store(cache, *range(64))
    age(cache, 5 * HOUR_S, *range(8))
    store(cache, *range(100, 104))
    assert used(cache) == known(cache) <= LIMIT - INDEX
    assert all(has(cache, number) for number in [*range(8, 64), *range(100, 104)])
    assert 2 <= sum(has(cache, number) for number in range(8)) <= 4


def test_reading_is_a_use(cache: Cache) -> None:
    store(cache, *range(64))
    age(cache, 5 * HOUR_S, *range(64))
    for number in range(32):
        assert cache.objects.load(digest(content(number)), SIZE) == content(number)
    store(cache, *range(100, 110))
    assert all(has(cache, number) for number in range(32))


def test_use_is_noted_once_in_a_while(cache: Cache) -> None:
    """Not with every read: that would write an inode each time."""
    store(cache, 1)
    age(cache, 60, 1)
    path = cache.objects.path(digest(content(1)))
    before = os.stat(path).st_mtime
    cache.objects.load(digest(content(1)), SIZE)
    assert os.stat(path).st_mtime == before


def test_times_from_the_future_mean_nothing(cache: Cache) -> None:
    """The clock was wrong, and has been set right."""
    store(cache, *range(64))
    age(cache, -1000 * HOUR_S, *range(32))
    for number in range(16):
        cache.objects.load(digest(content(number)), SIZE)
    store(cache, *range(100, 108))
    assert all(has(cache, number) for number in [*range(16), *range(32, 64)])
    assert abs(os.stat(cache.objects.path(digest(content(1)))).st_mtime - time.time()) < HOUR_S


def test_what_is_open_or_mapped_stays(cache: Cache) -> None:
    store(cache, *range(64))
    age(cache, HOUR_S, *range(1, 64))
    age(cache, 5 * HOUR_S, 0)
    with open(cache.objects.path(digest(content(0))), "rb"):
        store(cache, *range(100, 160))
        assert has(cache, 0)
        assert used(cache) <= LIMIT - INDEX
    store(cache, *range(160, 164))
    assert not has(cache, 0)


def test_objects_that_are_too_large_evict_nothing(cache: Cache) -> None:
    store(cache, *range(10))
    with pytest.raises(CacheFullError):
        store(cache, 1000, size=LIMIT)
    assert known(cache) == used(cache) == 10 * SIZE


def test_pinned_objects_stay(cache: Cache) -> None:
    store(cache, *range(64))
    age(cache, 5 * HOUR_S, *range(16))
    pinned = [digest(content(number)) for number in range(16)]
    cache.quota.pins.put("repository", b"a/path", pinned, {"files": 16})
    store(cache, *range(100, 140))
    store(cache, *range(200, 240))
    assert all(has(cache, number) for number in range(16))
    assert cache.quota.pins.all() == [{"repository": "repository", "path": "a/path", "files": 16}]
    assert cache.quota.pins.remove("repository", b"a/path")
    assert not cache.quota.pins.remove("repository", b"a/path")
    store(cache, *range(300, 340))
    assert not any(has(cache, number) for number in range(16))


def test_where_all_is_pinned_nothing_more_is_stored(cache: Cache) -> None:
    store(cache, *range(64))
    cache.quota.pins.put("repository", b"", [digest(content(number)) for number in range(64)], {})
    with pytest.raises(CacheFullError):
        store(cache, 100)
    assert known(cache) == used(cache) == 64 * SIZE


def test_damaged_pin_pins_nothing_and_harms_nothing(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    store(cache, *range(64))
    cache.quota.pins.put("repository", b"", [digest(content(number)) for number in range(64)], {})
    [pin] = cache.directory.path.glob("pins/*")
    whole = pin.read_bytes()
    for damaged in (b"", whole[:500], bytes(len(whole)), whole[:1100], b"cvfs-pin" + b"\xff" * 2000):
        pin.write_bytes(damaged)
        cache.quota.pins.all()
        for number in range(256):
            cache.quota.pins.of_shard(number)
    pin.write_bytes(bytes(len(whole)))
    store(cache, *range(100, 110))
    assert "is damaged" in caplog.text


def test_pages_have_a_bound_of_their_own(cache: Cache) -> None:
    """A quarter. Objects stay, old pages go, those that an index speaks of do not."""
    store(cache, *range(20))
    pages = [content(number, 4 * KIB) for number in range(200, 300)]
    needed = digest(pages[0])
    cache.quota._needed = lambda: {needed}
    for page in pages:
        cache.store_blob(digest(page), page)
        assert used(cache) == known(cache)
    assert all(has(cache, number) for number in range(20))
    assert needed in cache.blobs
    assert digest(pages[-1]) in cache.blobs
    metadata = cache.quota.use().metadata_bytes
    assert metadata is not None
    assert (LIMIT - INDEX) // 8 < metadata <= (LIMIT - INDEX) // 4


def test_a_lower_limit_is_reached_at_once_and_by_maintenance_alone(cache: Cache) -> None:
    store(cache, *range(64))
    for limit, work in ((INDEX + 32 * SIZE, "maintain"), (INDEX + 16 * SIZE, "store")):
        lower = opened(cache.directory.path, limit)
        if work == "store":
            store(lower, 100)
        else:
            lower.quota.maintain()
        assert used(lower) == known(lower) <= limit - INDEX
        assert used(lower) >= (limit - INDEX) // 2
        lower.close()


@pytest.mark.parametrize("damage", [b"", b"short", bytes(76), b"x" * 76, "altered", "lost"])
def test_a_ledger_that_is_lost_or_damaged_is_made_anew(cache: Cache, damage: bytes | str) -> None:
    store(cache, *range(60))
    ledger = cache.directory.path / "usage"
    whole = ledger.read_bytes()
    assert len(whole) == 76
    if isinstance(damage, bytes):
        ledger.write_bytes(damage)
    elif damage == "altered":
        ledger.write_bytes(whole[:10] + b"\x01" + whole[11:])
    else:
        ledger.unlink()
    assert cache.quota.use().used_bytes is None
    store(cache, *range(100, 108))  # what is not counted is taken to be full
    assert used(cache) <= 60 * SIZE
    cache.quota.maintain()
    assert known(cache) == used(cache)


@pytest.mark.parametrize("lie", [0, 10**12])
def test_a_ledger_that_lies_is_found_out(cache: Cache, lie: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvfs.cache.quota._TOLERATED_BYTES", 0)
    monkeypatch.setattr("cvfs.cache.quota._SAMPLED_SHARDS", 256)
    store(cache, *range(60))
    cache.quota.ledger.change(lambda sums: sums._replace(data=lie))
    cache.quota.maintain()
    assert known(cache) == used(cache) == 60 * SIZE


@pytest.mark.parametrize("change", [{"boot": bytes(16)}, {"counted_s": 1.0}, {"counted_s": 1e12}])
def test_sums_of_another_boot_or_time_are_counted_again(cache: Cache, change: dict[str, object]) -> None:
    store(cache, *range(10))
    cache.quota.ledger.change(lambda sums: sums._replace(data=1, **change))
    cache.quota.maintain()
    assert known(cache) == used(cache) == 10 * SIZE


def test_an_empty_cache_whose_ledger_was_lost_can_be_filled(cache: Cache) -> None:
    (cache.directory.path / "objects").mkdir()
    (cache.directory.path / "usage").unlink(missing_ok=True)
    assert not cache.quota.ledger.read().is_known
    store(cache, 1)
    assert known(cache) == SIZE


def test_what_is_stored_or_evicted_during_a_recount_is_not_lost(cache: Cache) -> None:
    """The sum may be too high afterwards, never too low."""
    store(cache, *range(60))

    def counting() -> tuple[int, int]:
        found = count(cache.directory.path)
        store(cache, *range(100, 120))  # evicts as well
        return found

    assert cache.quota.ledger.recount(counting)
    assert known(cache) >= used(cache)
    cache.quota.recount()
    assert known(cache) == used(cache)


def test_eviction_that_spans_a_recount_is_not_taken_off_twice(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    store(cache, *range(64))
    remove = os.unlink

    def counted_meanwhile(path: bytes) -> None:
        remove(path)
        monkeypatch.setattr(os, "unlink", remove)
        cache.quota.recount()

    monkeypatch.setattr(os, "unlink", counted_meanwhile)
    cache.quota.evict_data(SIZE)
    assert known(cache) == used(cache) == 63 * SIZE


def test_recount_waits_until_what_is_being_stored_is_stored(cache: Cache) -> None:
    with cache.quota.room([SIZE]) as room:
        counter = threading.Thread(target=cache.quota.recount)
        counter.start()
        time.sleep(0.05)
        room.fill(SIZE, lambda: cache.objects.store(digest(content(1)), content(1)))
    counter.join()
    assert known(cache) == used(cache) == SIZE


def test_only_one_counts(cache: Cache) -> None:
    with open(cache.directory.path / "usage.counting", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cache.quota.recount() is None
    assert cache.quota.recount() is not None


@needs_root
def test_full_disk_is_answered_with_eviction(tmp_path: Path) -> None:
    """Whatever the limit says."""
    with small_disk(tmp_path / "disk", "3m") as disk:
        cache = opened(disk, 1 << 40)
        numbers = iter(range(10**6))
        while cache.quota.evicted_bytes < MIB:
            store(cache, next(numbers), next(numbers))
        assert known(cache) == used(cache) > MIB
        cache.quota.ledger.change(lambda sums: sums._replace(data=0))
        store(cache, next(numbers))
        cache.close()


@needs_root
def test_a_disk_that_turns_out_full_while_writing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "3m") as disk:
        cache = opened(disk, 1 << 40)
        store(cache, *range(50))
        with cache.quota.room([SIZE]) as room:
            filler = fill(disk)
            room.fill(SIZE, lambda: cache.objects.store(digest(content(100)), content(100)))
        assert has(cache, 100)
        cache.quota.wipe()
        filler.unlink()
        fill(disk)
        with pytest.raises(CacheFullError):
            store(cache, 200)
        assert known(cache) == used(cache) == 0
        cache.close()


@needs_root
def test_space_is_left_to_others(tmp_path: Path) -> None:
    """Little by little: not the whole cache at once because somebody has filled the disk."""
    with small_disk(tmp_path / "disk", "5m") as disk:
        cache = opened(disk, 1 << 40, keep_free=2 * MIB)
        store(cache, *range(100))
        store(cache, *range(100, 200))
        assert cache.quota.use().free_bytes >= 2 * MIB
        (disk / "other").write_bytes(bytes(2 * MIB))
        before = used(cache)
        store(cache, 1000)
        assert before - 8 * SIZE <= used(cache) < before
        assert has(cache, 1000)
        for _ in range(40):
            cache.quota.maintain()
        assert known(cache) == used(cache) == 0
        cache.close()


@needs_root
def test_default_limit_leaves_a_fifth_of_the_free_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "5m") as disk:
        cache = Cache(disk, Limits(None, 0.0))
        for number in range(1000):
            store(cache, number)
        use = cache.quota.use()
        assert use.used_bytes is not None
        assert 0.7 * use.limit_bytes < use.used_bytes <= use.limit_bytes
        assert abs(use.limit_bytes - 4 * MIB * 0.8) < 0.2 * MIB
        cache.close()


def test_shares_are_of_the_disk(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", Limits(0.5, 0.25))
    disk = os.statvfs(tmp_path)
    size = disk.f_blocks * disk.f_frsize
    use = cache.quota.use()
    assert abs(use.limit_bytes - size * 0.5) <= 2 * MIB
    assert abs(use.keep_free_bytes - size * 0.25) <= 1
    cache.close()


_WORK = """
import random, sys
from pathlib import Path
from cvfs.cache import Cache
from cvfs.cache.quota import Limits
from cvfs.format.blob import digest
path, seed, rounds, limit, size = Path(sys.argv[1]), *map(int, sys.argv[2:])
cache = Cache(path, Limits(limit, 0))
random.seed(seed)
for _ in range(rounds):
    numbers = random.sample(range(seed, 1000, 4), 4)
    objects = {digest(data): data for data in (number.to_bytes(8, "big") * (size // 8) for number in numbers)}
    missing = [name for name in objects if name not in cache.objects]
    with cache.quota.room([size] * len(missing)) as room:
        for name in missing:
            room.fill(size, lambda: cache.objects.store(name, objects[name]))
cache.close()
"""


def worker(path: Path, seed: int, rounds: int) -> "subprocess.Popen[bytes]":
    """Stores objects of its own, chosen at random."""
    line = [sys.executable, "-c", _WORK, *map(str, (path, seed, rounds, LIMIT, SIZE))]
    return subprocess.Popen(line, env=environment())


@needs_root
def test_many_processes_share_the_limit_and_may_be_killed(tmp_path: Path) -> None:
    """Sampled from outside all the while, as the disk has it; one is killed while it stores, one at the end."""
    with small_disk(tmp_path / "disk", "16m") as disk:
        ours = opened(disk)
        ours.quota.ledger.change(lambda sums: sums)
        workers = [worker(disk, seed, 10**6 if seed < 2 else 60) for seed in range(4)]
        most, samples = 0, 0
        try:
            while any(each.poll() is None for each in workers[2:]):
                space = os.statvfs(disk)
                most, samples = max(most, (space.f_blocks - space.f_bfree) * space.f_frsize), samples + 1
                time.sleep(0.001)
                if len(list(disk.glob("objects/*/*"))) > 50:
                    workers[0].send_signal(signal.SIGKILL)
        finally:
            for each in workers[:2]:
                each.kill()
            for each in workers:
                each.wait()
        assert [each.returncode for each in workers[2:]] == [0, 0]
        assert samples > 100
        assert LIMIT - 8 * SIZE < most <= LIMIT + 4 * 4 * KIB, "beside it: four small files"
        before = known(ours)
        assert used(ours) <= before <= LIMIT - INDEX
        ours.quota.recount()
        assert known(ours) == used(ours)
        assert before - known(ours) <= 2 * 5 * SIZE, "two were killed"
        ours.close()


def test_store_is_not_held_up_by_a_process_that_is_stopped(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the worst of all places. The bytes are served uncached then."""
    monkeypatch.setattr("cvfs.cache.ledger._DEADLINE_S", 0.1)
    store(cache, 1)
    code = (
        "import fcntl, sys; from cvfs.cache.locks import try_range\n"
        "file = open(sys.argv[1], 'r+b'); print(try_range(file.fileno(), fcntl.F_WRLCK, 0), flush=True); input()"
    )
    line = [sys.executable, "-c", code, str(cache.directory.path / "usage")]
    with subprocess.Popen(line, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "True\n"
        with pytest.raises(Exception, match="another process holds"):
            store(cache, 2)
        holder.kill()
    store(cache, 2)


def test_sums_never_fall_below_nothing() -> None:
    assert Sums(5, 5).minus(10, 1) == Sums(0, 4)


def test_wipe_takes_all_and_gc_takes_what_it_must(cache: Cache) -> None:
    store(cache, *range(40))
    cache.store_blob(digest(b"page"), b"page")
    freed = cache.quota.evict_to(20 * SIZE)
    assert 20 * SIZE < freed <= 24 * SIZE
    assert digest(b"page") in cache.blobs
    assert known(cache) == used(cache) <= 20 * SIZE
    with open(next(list_all(cache.directory.path, "objects")).path, "rb"):
        cache.quota.wipe()
    assert known(cache) == used(cache) == 0
