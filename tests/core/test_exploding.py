"""Packs of small files are kept as they come, and made plain files later: nothing is lost, fetched or counted twice."""

import contextlib
import logging
import os
import shutil
from collections.abc import Collection
from functools import partial
from typing import Any

import pytest
import trio

from cvfs.cache import Cache
from cvfs.cache.shards import count, list_all
from cvfs.cache.space import Limits
from cvfs.errors import CacheError, IntegrityError
from cvfs.fetcher import exploding
from cvfs.format.blob import digest
from cvfs.model import BlobRef, Digest, Location
from tests.core.test_fetcher import SMALL, noise
from tests.core.test_hostile import Crafted, chunked, file, run
from tests.core.world import Client, World, no_server, opened, until

SIZE = 1 << 30
ROOM = Limits(SIZE, 0)
"""However full the disk is that the tests run on."""

NAMES = [os.fsencode(name) for name in SMALL]
IDS = {digest(data) for data in SMALL.values()}

WIDE = {f"{'x' * 180}{i:04}": b"%04d" % i for i in range(2000)}
"""One pack, several leaves."""


@pytest.fixture
def small(world: World) -> World:
    world.publish(SMALL)
    return world


def files(client: Client, kind: str) -> set[Digest]:
    """What the cache has of one kind."""
    return {found.name for found in list_all(client.cache.directory.path, kind)}


async def read_all(client: Client, names: Collection[bytes] = NAMES) -> None:
    for name in names:
        assert await client.read(name) == SMALL[os.fsdecode(name)]


async def stored(client: Client, *names: bytes) -> None:
    """Wait until the packs of files that were read are in the cache, of which it is known how full it is."""
    await until(lambda: client.cache.quota.use().used_bytes is not None)
    for name in names:
        pack = await client.pack_of(name)
        await until(lambda pack=pack: client.cache.packs.stored_bytes(pack.id) == pack.stored_size)


async def check_ledger(client: Client) -> None:
    """That the sums are what is on the disk, once pages have been stored."""
    quota, path = client.cache.quota, client.cache.directory.path
    await until(lambda: (quota.ledger.read().data, quota.ledger.read().metadata) == count(path))


async def leaves_of(client: Client, names: Collection[str]) -> dict[Digest, set[Digest]]:
    """The content ids that each leaf lists."""
    found: dict[Digest, set[Digest]] = {}
    for name in names:
        found.setdefault((await client.found(name.encode())).page.id, set()).add(digest(WIDE[name]))
    return found


# All of a pack


def test_small_files_come_as_a_pack_and_become_files(small: World) -> None:
    async def work(client: Client) -> None:
        await read_all(client)
        await stored(client, *NAMES)
        packs = {(await client.pack_of(name)).id for name in NAMES}
        assert (files(client, "packs"), files(client, "objects")) == (packs, set())
        await check_ledger(client)
        await client.explode()
        assert (files(client, "packs"), files(client, "objects")) == (set(), IDS)
        await check_ledger(client)

    small.run(work, limits=ROOM)
    small.server.requests.clear()
    assert small.read(*NAMES) == list(SMALL.values())
    assert not small.data_requests()


def test_files_of_the_same_content_are_one(world: World) -> None:
    data = noise(9000)
    world.publish({"a": data, "b/a": data, "c": noise(5000, 1), "b/c": noise(5000, 1)})

    async def work(client: Client) -> None:
        await client.read(b"a")
        await stored(client, b"a")
        await client.explode()
        assert files(client, "objects") == {digest(data), digest(noise(5000, 1))}
        await check_ledger(client)

    world.run(work, limits=ROOM)


def test_content_that_is_twice_in_a_pack_is_one_file(world: World, crafted: Crafted) -> None:
    """Another writer than ours may store it so."""
    data = noise(9000)
    pack = crafted.seal(data + data)
    manifest = crafted.manifest([file(b"a", pack, digest(data), 9000), file(b"b", pack, digest(data), 9000, 9000)])

    async def work(client: Client) -> None:
        await client.read(b"a")
        await stored(client, b"a")
        await client.explode()
        assert (files(client, "packs"), files(client, "objects")) == (set(), {digest(data)})
        await check_ledger(client)

    run(world, manifest, work)


def test_other_process_reads_out_of_a_cached_pack(small: World) -> None:
    small.read(*NAMES)
    shutil.rmtree(small.cache / "objects", ignore_errors=True)
    with no_server(small):
        told = small.answers(small.reader(*SMALL))
    assert told["answers"] == {name: digest(data).hex() for name, data in SMALL.items()}
    assert (told["counters"]["misses"], told["counters"]["fetched_blobs"]) == (0, 0)


def test_what_comes_out_of_a_cached_pack_is_a_hit(small: World) -> None:
    async def work(client: Client) -> tuple[int, int]:
        await client.found(NAMES[0])
        before = client.fetcher.counters.hits, client.fetcher.counters.misses
        await client.read(NAMES[0])
        await client.read(NAMES[0])
        after = client.fetcher.counters.hits, client.fetcher.counters.misses
        return after[0] - before[0], after[1] - before[1]

    assert small.run(work) == (1, 1)
    assert small.run(work) == (2, 0)


def test_what_is_read_ahead_out_of_the_cache_was_not_brought_ahead(world: World) -> None:
    world.publish({f"f{i}": noise(700_000, i) for i in range(6)})
    names = [b"f%d" % i for i in range(6)]

    async def work(client: Client) -> tuple[int, int]:
        packs = []
        for name in names:
            await client.read(name)
            packs.append((await client.pack_of(name)).id)
            await until(lambda: not client.fetcher._packs.ahead.is_busy)
        await stored(client, *names)
        assert len(set(packs)) > 2
        return client.fetcher.counters.ahead, client.fetcher.counters.fetched_blobs

    assert world.run(work)[0] > 0
    assert world.run(work) == (0, 0)


def test_file_in_a_pack_counts_as_cached(small: World) -> None:
    async def work(client: Client) -> None:
        inode = (await client.lookup(NAMES[0])).inode

        async def cached() -> bytes | None:
            return await client.fs.bring(lambda: client.fs.xattr_nowait(inode, b"user.cvfs.cached"))

        assert await cached() == b"0%"
        await client.read(NAMES[1])
        await stored(client, NAMES[1])
        assert not files(client, "objects")
        assert await cached() == b"100%"
        await client.explode()
        assert not files(client, "packs")
        assert await cached() == b"100%"

    small.run(work, limits=ROOM)


def test_who_wants_files_gets_them_at_once(small: World) -> None:
    async def work(client: Client) -> None:
        client.fetcher.keep_as_files()
        await client.read(NAMES[0])
        await until(lambda: files(client, "objects") == IDS)
        assert not files(client, "packs")

    small.run(work)


def test_who_wants_files_has_them_made_of_a_cached_pack(small: World) -> None:
    small.read(*NAMES)

    async def work(client: Client) -> None:
        assert not files(client, "objects")
        client.fetcher.keep_as_files()
        await client.read(NAMES[0])
        await until(lambda: files(client, "objects") == IDS)

    with no_server(small):
        small.run(work)


# Part of a pack


def test_pack_that_is_known_in_part_stays(world: World) -> None:
    world.publish(WIDE)
    first, last = min(WIDE), max(WIDE)

    async def work(client: Client) -> None:
        leaves = await leaves_of(client, WIDE)
        pack = await client.pack_of(first.encode())
        assert pack == await client.pack_of(last.encode())
        await client.read(first.encode())
        await stored(client, first.encode())
        await client.explode()
        known = leaves[(await client.found(first.encode())).page.id]
        assert 1 < len(known) < len(WIDE)
        assert (files(client, "packs"), files(client, "objects")) == ({pack.id}, known)
        await check_ledger(client)
        world.server.requests.clear()
        client.fetcher._packs.packs.clear()
        assert await client.read(last.encode()) == WIDE[last]
        await client.explode()
        known |= leaves[(await client.found(last.encode())).page.id]
        assert files(client, "objects") == known
        for name, data in WIDE.items():
            assert await client.read(name.encode()) == data
        await client.explode()
        assert files(client, "objects") == {digest(data) for data in WIDE.values()}
        assert not files(client, "packs")
        assert not world.data_requests()
        await check_ledger(client)

    world.run(work, limits=ROOM)


def test_leaves_of_a_pack_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A licence text is one object in one pack, and in every leaf."""
    monkeypatch.setattr(exploding, "_LEAVES", 2)
    world.publish(WIDE)

    async def work(client: Client) -> None:
        leaves = await leaves_of(client, WIDE)
        asked = []
        cached = client.fetcher._pages.cached

        async def listen(ref: Any) -> Any:
            asked.append(ref.id)
            return await cached(ref)

        monkeypatch.setattr(client.fetcher._pages, "cached", listen)
        for name in WIDE:
            await client.read(name.encode())
        await stored(client, name.encode())
        await client.explode()
        assert len(leaves) > len(asked) == 2
        assert files(client, "objects") == leaves[asked[0]] | leaves[asked[1]]
        assert files(client, "packs")
        while len(asked) < len(leaves):  # the others in their turn, where they are read out of the pack again
            client.fetcher._packs.packs.clear()
            for name in WIDE:
                await client.read(name.encode())
            before = len(asked)
            await client.explode()
            assert before < len(asked) <= before + 2
        assert files(client, "objects") == {digest(data) for data in WIDE.values()}

    world.run(work, limits=ROOM)


def test_mixed_pack_stays(world: World, crafted: Crafted) -> None:
    """Another writer than ours may put chunks of large objects and small objects into one pack."""
    small, chunk = noise(500), noise(4000, 1)
    pack = crafted.seal(small + chunk)
    manifest = crafted.manifest(
        [chunked(b"large", 4000, Location(0, 4000, pack, 500, digest(chunk))), file(b"small", pack, digest(small), 500)]
    )

    async def work(client: Client, first: bytes, then: bytes) -> None:
        await client.read(first)
        await client.read(then)
        await until(lambda: files(client, "large"))
        if first == b"small":
            await check_ledger(client)
            assert not files(client, "objects"), "it is in the pack"
        await client.explode()
        await until(lambda: files(client, "objects") == {digest(small)})
        assert files(client, "packs") == ({pack.id} if first == b"small" else set())
        await check_ledger(client)

    for names in ((b"small", b"large"), (b"large", b"small")):
        run(world, manifest, partial(work, first=names[0], then=names[1]))
        with no_server(world):
            assert world.read(b"large", b"small") == [chunk, small]
        shutil.rmtree(world.cache)


@pytest.fixture
def crafted(world: World) -> Crafted:
    return Crafted(world.store.path)


def test_chunk_in_a_pack_that_is_cached_is_read_out_of_it(world: World, crafted: Crafted) -> None:
    small, chunk = noise(500), noise(4000, 1)
    pack = crafted.seal(small + chunk)
    large = chunked(b"large", 4000, Location(0, 4000, pack, 500, digest(chunk)))
    manifest = crafted.manifest([large, file(b"small", pack, digest(small), 500)])

    async def work(client: Client) -> None:
        await client.read(b"small")
        await stored(client, b"small")

    run(world, manifest, work)
    with no_server(world):
        assert world.read(b"large") == [chunk]


# No room


async def _sizes(client: Client) -> tuple[int, int]:
    await read_all(client)
    await stored(client, *NAMES)
    await check_ledger(client)
    use = client.cache.quota.use()
    assert use.used_bytes
    return SIZE - use.limit_bytes, use.used_bytes


def nearly_full(world: World) -> Limits:
    """The limit of a cache that has all packs, and no room for files beside them, but for a few."""
    index, used = world.run(_sizes, limits=ROOM)
    return Limits(index + used * 9 // 8, 0)


def test_nearly_full_cache_keeps_packs(small: World) -> None:
    limits = nearly_full(small)

    async def work(client: Client) -> None:
        await read_all(client)
        await client.explode()
        assert not files(client, "objects")
        assert files(client, "packs") == {(await client.pack_of(name)).id for name in NAMES}
        await check_ledger(client)

    small.run(work, limits=limits)


def test_nearly_full_cache_makes_files_of_the_few_that_are_read_again(small: World) -> None:
    limits = nearly_full(small)

    async def work(client: Client) -> None:
        await read_all(client, NAMES[:2])
        await client.explode()
        assert files(client, "objects") == {digest(SMALL[os.fsdecode(name)]) for name in NAMES[:2]}
        assert files(client, "packs")
        await check_ledger(client)

    small.run(work, limits=limits)


def test_nearly_full_cache_makes_no_files_of_what_is_read_for_the_first_time(small: World) -> None:
    limits = nearly_full(small)

    async def work(client: Client) -> None:
        client.cache.packs.discard((await client.pack_of(NAMES[0])).id)
        await read_all(client, NAMES[:2])
        await stored(client, NAMES[0])
        await client.explode()
        assert not files(client, "objects")
        await check_ledger(client)

    small.run(work, limits=limits)


def test_nearly_full_cache_makes_files_of_what_is_pinned(small: World) -> None:
    limits = nearly_full(small)
    pinned = {digest(SMALL[f"d3/f{i:03}"]) for i in range(30, 34)}

    async def work(client: Client) -> None:
        client.cache.quota.pins.put("r", b"d3", {*pinned, digest(b"something else")}, {})
        await read_all(client)
        await client.explode()
        assert files(client, "objects") == pinned
        assert files(client, "packs")
        await check_ledger(client)

    small.run(work, limits=limits)


# No server


def test_no_mirror_is_asked_while_exploding(small: World) -> None:
    async def work(client: Client) -> None:
        await read_all(client)
        await stored(client, *NAMES)
        with no_server(small):
            client.fetcher._pages._memory.clear()
            await client.explode()
        assert files(client, "objects") == IDS

    small.run(work, limits=ROOM)


def test_pack_whose_leaf_is_gone_waits_for_it(small: World) -> None:
    async def work(client: Client) -> None:
        await read_all(client)
        await stored(client, *NAMES)
        await check_ledger(client)
        shutil.rmtree(client.cache.directory.path / "blobs")
        client.fetcher._pages._memory.clear()
        small.server.requests.clear()
        await client.explode()
        assert not small.data_requests()
        assert files(client, "packs")
        assert not files(client, "objects")
        await read_all(client)
        await client.explode()
        assert files(client, "objects") == IDS
        assert not files(client, "packs")

    small.run(work, limits=ROOM)


# A bad disk


def test_disk_that_fails_midway_leaves_the_pack(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(client: Client) -> None:
        await read_all(client)
        await stored(client, *NAMES)
        store, left = client.cache.objects.store, [10]

        def fail(name: Digest, data: memoryview) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise CacheError("the disk failed")
            store(name, data)

        with monkeypatch.context() as patch:
            patch.setattr(client.cache.objects, "store", fail)
            assert not await client.fetcher.exploder.explode()
        assert len(files(client, "objects")) == 10
        assert files(client, "packs")
        assert client.fetcher.counters.uncached == 1
        await check_ledger(client)
        assert await client.fetcher.exploder.explode()
        assert (files(client, "packs"), files(client, "objects")) == (set(), IDS)
        await check_ledger(client)

    small.run(work, limits=ROOM)


def test_disk_that_takes_nothing_is_tried_with_one_pack(world: World) -> None:
    """Not with each of very many, whenever there is a pause."""
    data = [noise(700_000, i) for i in range(4)]
    world.publish({f"f{i}": each for i, each in enumerate(data)})
    names = [b"f%d" % i for i in range(4)]

    async def work(client: Client) -> None:
        for name in names:
            await client.read(name)
        await stored(client, *names)
        (world.cache / "objects").write_bytes(b"where a directory belongs")
        for attempt in range(1, 4):
            assert not await client.fetcher.exploder.explode()
            assert client.fetcher.counters.uncached == attempt
        (world.cache / "objects").unlink()
        await client.explode()
        assert files(client, "objects") == {digest(each) for each in data}
        await check_ledger(client)

    world.run(work, limits=ROOM)


def test_while_it_is_unknown_how_full_the_cache_is_nothing_is_made(small: World) -> None:
    async def work(client: Client) -> None:
        await read_all(client)
        await stored(client, *NAMES)
        await check_ledger(client)
        (client.cache.directory.path / "usage").unlink()
        assert not await client.fetcher.exploder.explode()
        assert not files(client, "objects")
        assert client.cache.quota.recount()
        assert await client.fetcher.exploder.explode()
        assert files(client, "objects") == IDS
        await check_ledger(client)

    small.run(work, limits=ROOM)


# Publishers that lie


def test_what_is_named_wrongly_keeps_its_pack_and_is_told_once(
    world: World, crafted: Crafted, caplog: pytest.LogCaptureFixture
) -> None:
    pack = crafted.seal(b"false" + b"right")
    right = file(b"right", pack, digest(b"right"), 5, 5)
    manifest = crafted.manifest([file(b"lie", pack, digest(b"honest"), 5), right])

    async def work(client: Client) -> None:
        for _ in range(3):
            client.fetcher._packs.packs.clear()
            await client.read(b"right")
            await stored(client, b"right")
            await client.explode()
            assert (files(client, "packs"), files(client, "objects")) == ({pack.id}, {digest(b"right")})
            client.cache.objects.discard(digest(b"right"))  # so that the pack is read again
        faults = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert len(faults) == client.fetcher.counters.integrity_errors == 1
        assert digest(b"honest").hex() in faults[0].getMessage()
        with pytest.raises(IntegrityError):
            await client.read(b"lie")

    run(world, manifest, work)


def test_pieces_that_overlap_are_not_all_of_their_pack(world: World, crafted: Crafted) -> None:
    """Another repository may have something in the same pack."""
    pack = crafted.seal(b"0123456789")
    manifest = crafted.manifest([file(b"a", pack, digest(b"0123456"), 7, 0), file(b"b", pack, digest(b"23456"), 5, 2)])

    async def work(client: Client) -> None:
        await client.read(b"a")
        await stored(client, b"a")
        await client.explode()
        assert len(files(client, "objects")) == 2
        assert files(client, "packs") == {pack.id}

    run(world, manifest, work)


def test_pack_under_another_size_harms_no_other_pack(world: World, crafted: Crafted) -> None:
    pack, other = crafted.seal(b"0123456789"), crafted.seal(b"other")
    lie = BlobRef(pack.id, pack.stored_size - 1, pack.plain_size)
    names = [b"%0200d" % i for i in range(1500)]
    manifest = crafted.manifest(
        [
            *(file(name, pack, digest(b"0123456789"), 10) for name in names[:750]),
            *(file(name, lie, digest(b"0123456789"), 10) for name in names[750:]),
            file(b"z", other, digest(b"other"), 5),
        ]
    )

    async def work(client: Client) -> None:
        assert (await client.found(names[0])).page != (await client.found(names[-1])).page
        for name in (names[0], names[-1], b"z"):
            await client.read(name)
        await stored(client, names[0], b"z")
        await client.explode()
        assert files(client, "objects") == {digest(b"0123456789"), digest(b"other")}

    run(world, manifest, work)


# Others


def test_nothing_more_is_done_once_packs_are_brought_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish({f"f{i}": noise(700_000, i) for i in range(3)})
    names = [b"f%d" % i for i in range(3)]

    async def work(client: Client) -> None:
        for name in names:
            await client.read(name)
        await stored(client, *names)
        exploder, discard = client.fetcher.exploder, client.cache.packs.discard
        packs = files(client, "packs")

        def meanwhile(name: Digest) -> None:
            discard(name)
            trio.from_thread.run_sync(exploder.activity.note)

        monkeypatch.setattr(client.cache.packs, "discard", meanwhile)
        for left in range(len(packs) - 1, -1, -1):
            await exploder.activity.wait_for_pause(0)
            assert await exploder.explode(rest=0.01) == (not left)
            assert len(files(client, "packs")) == left

    world.run(work, limits=ROOM)


@pytest.mark.parametrize("again", [False, True])
def test_pack_that_is_gone_meanwhile(small: World, again: bool) -> None:
    """Evicted, or exploded by another process."""

    async def work(client: Client) -> None:
        await read_all(client)
        await stored(client, *NAMES)
        await check_ledger(client)
        async with opened(small.server.url, small.manifest, small.cache, limits=ROOM) as other:
            if again:
                await read_all(other)
                await other.explode()
            else:
                other.cache.quota.evict_to(0)
        assert not files(client, "packs")
        assert await client.fetcher.exploder.explode()
        assert files(client, "objects") == (IDS if again else set())
        await read_all(client)
        await check_ledger(client)

    small.run(work, limits=ROOM)


def test_pack_that_another_process_evicts_as_it_is_discarded_is_taken_off_once(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: Client) -> None:
        await read_all(client)
        await stored(client, *NAMES)
        await check_ledger(client)
        discard = client.cache.packs.discard

        def too_late(name: Digest) -> None:
            with contextlib.closing(Cache(small.cache, ROOM)) as other:
                other.packs.discard(name)
                other.quota.evictor.forget_dropped()
            discard(name)

        monkeypatch.setattr(client.cache.packs, "discard", too_late)
        await client.explode()
        assert (files(client, "packs"), files(client, "objects")) == (set(), IDS)
        await check_ledger(client)

    small.run(work, limits=ROOM)


def test_pack_that_another_process_explodes_is_left_to_it(small: World) -> None:
    async def work(client: Client) -> None:
        await read_all(client)
        await stored(client, *NAMES)
        await client.fetcher.wait_until_stored()  # who has stored it holds its lock a moment longer
        [pack] = {await client.pack_of(name) for name in NAMES}
        with contextlib.closing(Cache(small.cache, ROOM)) as other:
            lock = other.locks.try_lock(pack.id)
            assert lock
            assert not await client.fetcher.exploder.explode()
            assert not files(client, "objects")
            lock.release()
        assert await client.fetcher.exploder.explode()
        assert files(client, "objects") == IDS

    small.run(work, limits=ROOM)


def test_two_that_explode_the_same_at_once(small: World) -> None:
    async def work(client: Client) -> None:
        async with opened(small.server.url, small.manifest, small.cache, limits=ROOM) as other:
            await read_all(client)
            await read_all(other)
            await stored(client, *NAMES)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.explode)
                nursery.start_soon(other.explode)
        assert (files(client, "packs"), files(client, "objects")) == (set(), IDS)
        await check_ledger(client)

    small.run(work, limits=ROOM)


def test_what_is_read_while_a_pack_is_exploded_is_not_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leaf that is read for the first time while others are looked at."""
    world.publish(WIDE)
    first, last = min(WIDE), max(WIDE)

    async def work(client: Client) -> None:
        leaves = await leaves_of(client, WIDE)
        await client.read(first.encode())
        await stored(client, first.encode())
        cached = client.fetcher._pages.cached

        async def meanwhile(ref: Any) -> Any:
            await client.read(last.encode())
            return await cached(ref)

        with monkeypatch.context() as patch:
            patch.setattr(client.fetcher._pages, "cached", meanwhile)
            assert not await client.fetcher.exploder.explode()
        await client.explode()
        ends = [leaves[(await client.found(name.encode())).page.id] for name in (first, last)]
        assert files(client, "objects") == ends[0] | ends[1]

    world.run(work, limits=ROOM)
