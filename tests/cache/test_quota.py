"""The limit of the cache: what is stored, what goes for it, and what the ledger knows."""

import contextlib
import errno
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

from cvfs import pieces
from cvfs.cache import Cache, eviction
from cvfs.cache.index_files import FIRST_CAPACITY
from cvfs.cache.inode_table import size_of
from cvfs.cache.leases import Leases
from cvfs.cache.ledger import Sums
from cvfs.cache.shards import count
from cvfs.cache.space import Limits
from cvfs.errors import CacheError, CacheFullError
from cvfs.format.blob import digest
from cvfs.limits import MAX_BLOB_BYTES
from cvfs.model import BlobRef, Digest, Location
from cvfs.pieces import Piece
from tests.cache.disks import fill, needs_root, small_disk
from tests.cache.test_index import adopt, check
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
    with cache.quota.reserve([size] * len(numbers)) as reservation:
        for number in numbers:
            data = content(number, size)
            reservation.fill(size, lambda data=data: cache.objects.store(digest(data), data))  # type: ignore[misc]


def has(cache: Cache, number: int) -> bool:
    return cache.objects.stored_bytes(digest(content(number))) > 0


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
        with cache.quota.reserve([SIZE, SIZE]) as reservation:
            reservation.fill(SIZE, lambda: cache.objects.store(digest(content(1)), content(1)))
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


def test_where_nothing_may_go_nobody_looks_for_it_again_at_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole cache would be listed for each pack that is read."""
    now = [1000.0]
    monkeypatch.setattr("cvfs.cache.admission.time.monotonic", lambda: now.__setitem__(0, now[0] + 0.1) or now[0])
    store(cache, *range(64))
    cache.quota.pins.put("repository", b"", [digest(content(number)) for number in range(64)], {})
    listed = []
    list_shard = eviction.list_shard
    monkeypatch.setattr(eviction, "list_shard", lambda *args: listed.append(args) or list_shard(*args))
    for number in (100, 101):
        with pytest.raises(CacheFullError):
            store(cache, number)
    assert len(listed) == 2 * 3 * 256, "objects, large files, packs: once beside others, once where nobody else stores"
    assert cache.quota.pins.remove("repository", b"")
    now[0] += 1000
    store(cache, 102)
    assert has(cache, 102)


def test_where_it_takes_long_to_see_what_is_open_more_is_evicted_at_once(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it is not looked for all the time; where there was a pause since, as little as ever."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def look(of_metadata: bool) -> list[bytes]:
        now[0] += 1
        return []

    monkeypatch.setattr(cache.quota.evictor, "_needed", look)
    store(cache, *range(64))

    def evicted_by(number: int) -> int:
        before = used(cache)
        store(cache, number)
        return (before + SIZE - used(cache)) // SIZE

    assert evicted_by(100) == 2
    store(cache, 101)
    assert evicted_by(102) == 1 + 8
    store(cache, *range(200, 208))
    now[0] += 100
    assert evicted_by(300) == 2


def test_what_is_open_is_looked_for_again_where_a_search_takes_long(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(cache, *range(64))
    ids = {digest(content(number)) for number in range(64)}
    looks = []
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)

    def look(of_metadata: bool) -> set[Digest]:
        """From the second time on all are open. It takes no time, so it is looked again for each part of the cache."""
        looks.append(None)
        return ids if len(looks) > 1 else set()

    monkeypatch.setattr(cache.quota.evictor, "_needed", look)
    cache.quota.evictor.evict(64 * SIZE)
    first_part = max(sum(name[0] == number for name in ids) for number in range(256))
    assert sum(has(cache, number) for number in range(64)) >= 64 - first_part


@pytest.fixture
def no_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFSv4 for lack of a delegation: that says nothing of who has a file open."""
    ask = fcntl.fcntl

    def refuse(fd: int, command: int, *args: int) -> object:
        if command == fcntl.F_SETLEASE:
            raise BlockingIOError(errno.EAGAIN, "refused")
        return ask(fd, command, *args)

    monkeypatch.setattr(fcntl, "fcntl", refuse)


@pytest.mark.usefixtures("no_leases")
def test_where_the_disk_grants_no_leases_files_go_all_the_same(cache: Cache) -> None:
    store(cache, *range(64))
    store(cache, *range(100, 104))
    assert used(cache) == known(cache) <= LIMIT - INDEX
    assert not list(cache.directory.path.rglob(".new-*"))


@pytest.mark.usefixtures("no_leases")
def test_where_the_disk_grants_no_leases_files_of_any_kind_go(cache: Cache) -> None:
    """Also where no small object was ever stored."""
    recipe, place = digest(b"recipe"), Location(0, SIZE, BlobRef(digest(b"pack"), SIZE, SIZE), 0, digest(content(1)))
    with cache.quota.reserve([SIZE]) as reservation:
        reservation.fill(SIZE, lambda: cache.large.store(recipe, SIZE, place, content(1)))
    assert not (cache.directory.path / "objects").exists()
    assert cache.quota.evict_to(0) == SIZE


def test_what_a_killed_process_left_unfinished_is_removed(cache: Cache) -> None:
    left = [cache.directory.path / ".new-0", cache.directory.path / "objects/.new-0"]
    store(cache, 1)
    for path in left:
        path.touch()
        os.utime(path, (0, 0))
    cache.quota.recount()
    assert not any(path.exists() for path in left)


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
    cache.quota.evictor._needed = lambda of_metadata: {needed} if of_metadata else set()
    for page in pages:
        cache.store_blob(digest(page), page)
        assert used(cache) == known(cache)
    assert all(has(cache, number) for number in range(20))
    assert cache.blobs.stored_bytes(needed)
    assert cache.blobs.stored_bytes(digest(pages[-1]))
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


@pytest.mark.parametrize("damage", [b"", b"short", bytes(76), b"x" * 76, bytes(100), "altered", "lost"])
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
    remove = eviction._remove

    def counted_meanwhile(path: bytes, leases: Leases, *, open_too: bool) -> eviction.Evicted:
        found = remove(path, leases, open_too=open_too)
        if found.freed:
            monkeypatch.setattr(eviction, "_remove", remove)
            cache.quota.recount()
        return found

    monkeypatch.setattr(eviction, "_remove", counted_meanwhile)
    cache.quota.evictor.evict(SIZE)
    assert known(cache) == used(cache) == 63 * SIZE


def test_sums_that_are_right_stay_right_in_a_recount_while_much_is_stored(cache: Cache) -> None:
    """What the count has met was also added: it is not taken twice."""
    store(cache, *range(10))

    def counting() -> tuple[int, int]:
        store(cache, *range(20, 30))
        cache.store_blob(digest(b"page"), b"page")
        return count(cache.directory.path)

    assert cache.quota.ledger.recount(counting)
    assert known(cache) == used(cache) == 20 * SIZE + 4 * KIB


def test_what_is_given_back_during_a_recount_was_never_added(cache: Cache) -> None:
    store(cache, *range(10))
    cache.quota.ledger.change(lambda sums: sums._replace(boot=bytes(16)))  # so that they are not believed

    def counting() -> tuple[int, int]:
        with cache.quota.reserve([SIZE] * 5):
            pass
        return count(cache.directory.path)

    assert cache.quota.ledger.recount(counting)
    assert known(cache) == used(cache) == 10 * SIZE


@pytest.mark.parametrize("lie", [10 * SIZE, 59 * SIZE])
def test_sums_that_were_too_low_do_not_survive_a_recount(cache: Cache, lie: int) -> None:
    store(cache, *range(60))
    cache.quota.ledger.change(lambda sums: sums._replace(data=lie))
    cache.quota.recount()
    assert known(cache) == used(cache) == 60 * SIZE


def test_a_ledger_that_is_lost_during_a_recount_is_counted_all_the_same(cache: Cache) -> None:
    store(cache, *range(10))

    def counting() -> tuple[int, int]:
        (cache.directory.path / "usage").unlink()
        return count(cache.directory.path)

    assert cache.quota.ledger.recount(counting)
    assert known(cache) == used(cache) == 10 * SIZE


def test_eviction_goes_on_being_taken_off_after_a_recount(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the step in which it happened."""
    monkeypatch.setattr("cvfs.cache.eviction._SAMPLE", 1)
    store(cache, *range(64))
    remove = eviction._remove

    def counted_meanwhile(path: bytes, leases: Leases, *, open_too: bool) -> eviction.Evicted:
        cache.quota.recount()
        found = remove(path, leases, open_too=open_too)
        if found.freed:
            monkeypatch.setattr(eviction, "_remove", remove)
        return found

    monkeypatch.setattr(eviction, "_remove", counted_meanwhile)
    cache.quota.evictor.evict(20 * SIZE)
    assert used(cache) == 44 * SIZE
    assert known(cache) == 45 * SIZE


def test_damaged_file_that_is_dropped_is_taken_off(cache: Cache) -> None:
    store(cache, *range(10))
    cache.store_blob(digest(b"page"), b"page")
    for path, size in ((cache.objects.path(digest(content(1))), 100), (cache.blobs.path(digest(b"page")), 2)):
        os.truncate(path, size)
    assert cache.objects.load(digest(content(1)), SIZE) is None
    assert cache.blobs.load(digest(b"page"), 4) is None
    store(cache, 20)
    assert used(cache) == 10 * SIZE
    assert known(cache) - used(cache) < 2 * 4 * KIB


@pytest.mark.parametrize("claimed", [0, SIZE - 1, SIZE + 1, 10 * SIZE])
def test_file_is_not_dropped_because_somebody_claims_another_size(cache: Cache, claimed: int) -> None:
    store(cache, 1)
    assert cache.objects.load(digest(content(1)), claimed) is None
    assert cache.objects.load(digest(content(1)), SIZE) == content(1)


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1, 2 * MAX_BLOB_BYTES])
@pytest.mark.parametrize("claimed", [SIZE, SIZE - 1, SIZE + 1])
def test_file_of_another_size_is_dropped_whatever_is_claimed(cache: Cache, size: int, claimed: int) -> None:
    store(cache, 1)
    path = cache.objects.path(digest(content(1)))
    os.truncate(path, size)
    assert cache.objects.load(digest(content(1)), claimed) is None
    assert not os.path.exists(path)


def test_what_is_there_is_not_stored_again(cache: Cache) -> None:
    """Neither small objects nor chunks of large ones: they would be counted twice."""
    plain = b"".join(content(number, 4 * KIB) for number in range(4))
    pack = BlobRef(digest(plain), len(plain), len(plain))
    chunks = [(digest(plain[at : at + 4 * KIB]), at) for at in range(0, len(plain), 4 * KIB)]
    places = [Location(at, 4 * KIB, pack, at, chunk_id) for chunk_id, at in chunks]
    parts = [Piece(Digest(place.chunk_id), place, digest(b"recipe"), len(plain)) for place in places]
    parts.append(Piece(chunks[0][0], Location(0, 4 * KIB, pack, 0, b""), None, 4 * KIB))
    for wanted in (parts[:1], parts[2:], parts, parts):
        assert not pieces.store(cache, wanted, plain)
        assert known(cache) == used(cache)
    assert used(cache) == 5 * 4 * KIB


def test_recount_finds_a_moment_where_something_is_stored_all_the_time(cache: Cache) -> None:
    """Each of two goes on until the other has begun, unless that takes too long."""
    begun, done = [threading.Event(), threading.Event()], threading.Event()

    def work(number: int) -> None:
        while not done.is_set():
            with cache.quota.reserve([SIZE]):
                begun[1 - number].clear()
                begun[number].set()
                begun[1 - number].wait(0.3)

    workers = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for each in workers:
        each.start()
    try:
        assert all(event.wait(10) for event in begun)
        assert cache.quota.recount() is not None
    finally:
        done.set()
        for each in workers:
            each.join()


def test_recount_waits_until_what_is_being_stored_is_stored(cache: Cache) -> None:
    with cache.quota.reserve([SIZE]) as reservation:
        counter = threading.Thread(target=cache.quota.recount)
        counter.start()
        time.sleep(0.05)
        reservation.fill(SIZE, lambda: cache.objects.store(digest(content(1)), content(1)))
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
        while cache.quota.evictor.evicted_bytes < MIB:
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
        with cache.quota.reserve([SIZE]) as reservation:
            filler = fill(disk)
            reservation.fill(SIZE, lambda: cache.objects.store(digest(content(100)), content(100)))
        assert has(cache, 100)
        cache.quota.wipe()
        filler.unlink()
        fill(disk)
        with pytest.raises(CacheFullError):
            store(cache, 200)
        assert known(cache) == used(cache) == 0
        cache.close()


@needs_root
@pytest.mark.parametrize("times", [2, 1000])
def test_others_fill_what_is_freed_of_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """It is tried again; but not until nothing of the cache is left."""
    with small_disk(tmp_path / "disk", "3m") as disk:
        cache = opened(disk, 1 << 40)
        store(cache, *range(50))
        evict, freed = cache.quota.evictor.evict_to_store, list[int]()

        def evict_for_others(size: int) -> int:
            freed.append(evict(size))
            if len(freed) <= times:
                fill(disk).rename(disk / f"filler{len(freed)}")
            return freed[-1]

        monkeypatch.setattr(cache.quota.evictor, "evict_to_store", evict_for_others)
        with cache.quota.reserve([SIZE]) as reservation:
            fill(disk).rename(disk / "filler0")
            with contextlib.suppress(CacheFullError):
                reservation.fill(SIZE, lambda: cache.objects.store(digest(content(100)), content(100)))
        assert has(cache, 100) == (times == 2)
        assert len(freed) == 3
        assert known(cache) == used(cache) > 30 * SIZE
        cache.close()


@needs_root
def test_objects_give_way_to_the_inode_index(tmp_path: Path, host_memory: Path) -> None:
    """On a full disk: files of a mount that no process could find again would be lost to their readers."""
    with small_disk(tmp_path / "disk", "4m") as disk:
        cache = opened(disk, 1 << 40)
        store(cache, *range(100))
        fill(disk)
        numbers = adopt(cache.index, 1)
        check(cache.index, 1, numbers)
        assert cache.quota.evictor.evicted_bytes > 0
        assert known(cache) == used(cache)
        assert not list(host_memory.iterdir())
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
from cvfs.cache.space import Limits
from cvfs.format.blob import digest
path, seed, rounds, limit, size = Path(sys.argv[1]), *map(int, sys.argv[2:])
cache = Cache(path, Limits(limit, 0))
random.seed(seed)
for _ in range(rounds):
    numbers = random.sample(range(seed, 1000, 4), 4)
    objects = {digest(data): data for data in (number.to_bytes(8, "big") * (size // 8) for number in numbers)}
    missing = [name for name in objects if not cache.objects.stored_bytes(name)]
    with cache.quota.reserve([size] * len(missing)) as reservation:
        for name in missing:
            reservation.fill(size, lambda: cache.objects.store(name, objects[name]))
cache.close()
"""


def worker(path: Path, seed: int, rounds: int, size: int = SIZE) -> "subprocess.Popen[bytes]":
    """Stores objects of its own, chosen at random, four at a time."""
    line = [sys.executable, "-c", _WORK, *map(str, (path, seed, rounds, LIMIT, size))]
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
        "import sys; from cvfs.flock import try_byte\n"
        "file = open(sys.argv[1], 'r+b'); print(try_byte(file.fileno(), 0), flush=True); input()"
    )
    line = [sys.executable, "-c", code, str(cache.directory.path / "usage")]
    with subprocess.Popen(line, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "True\n"
        with pytest.raises(Exception, match="another process holds"):
            store(cache, 2)
        holder.kill()
    store(cache, 2)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_where_the_disk_fails_the_sums_are_unknown(cache: Cache, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is raised is a CacheError: all others end the client."""
    store(cache, 1)

    def fail(*args: object, **options: object) -> int:
        raise OSError(number, os.strerror(number))

    for name in ("open", "stat", "listdir"):
        monkeypatch.setattr(os, name, fail)
    assert not cache.quota.ledger.read().is_known
    with pytest.raises(CacheError):
        cache.quota.ledger.change(lambda sums: sums)
    monkeypatch.undo()
    monkeypatch.setattr(os, "pread", fail)
    assert not cache.quota.ledger.read().is_known
    with pytest.raises(CacheError):
        store(cache, 2)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_where_there_are_no_locks_nobody_is_waited_for(
    cache: Cache, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    store(cache, *range(10))
    assert cache.quota.recount() is not None
    assert known(cache) == used(cache) == 10 * SIZE


def test_chunk_is_stored_while_its_file_is_looked_at_by_an_evicting_process(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, recipe = content(1), digest(b"recipe")
    ref = BlobRef(digest(data), SIZE, SIZE)
    first, second = (Location(at, SIZE, ref, 0, digest(data)) for at in (0, SIZE))
    cache.large.store(recipe, 2 * SIZE, first, data)
    fd = os.open(cache.large.path(recipe), os.O_RDONLY)
    assert Leases(cache.directory.path).is_unused(fd)
    monkeypatch.setattr("cvfs.cache.large.time.sleep", lambda _: os.close(fd))
    cache.large.store(recipe, 2 * SIZE, second, data)
    assert cache.large.load(recipe, first) == cache.large.load(recipe, second) == data


def test_sums_never_fall_below_nothing() -> None:
    assert Sums(5, 5).minus(10, 1) == Sums(0, 4)


def test_wipe_takes_all_and_gc_takes_what_it_must(cache: Cache) -> None:
    store(cache, *range(40))
    cache.store_blob(digest(b"page"), b"page")
    freed = cache.quota.evict_to(20 * SIZE)
    assert 20 * SIZE < freed <= 24 * SIZE
    assert cache.blobs.stored_bytes(digest(b"page"))
    assert known(cache) == used(cache) <= 20 * SIZE
    cache.quota.wipe()
    assert known(cache) == used(cache) == 0


def test_what_is_open_when_all_is_wiped_still_counts(cache: Cache) -> None:
    """As it takes space until it is closed."""
    store(cache, *range(10))
    with open(cache.objects.path(digest(content(3))), "rb"):
        assert cache.quota.wipe() == 9 * SIZE
        assert used(cache) == 0
        assert known(cache) == SIZE
    cache.quota.recount()
    assert known(cache) == 0
