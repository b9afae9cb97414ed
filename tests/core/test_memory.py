"""What fetchers hold in memory, whatever publishers make of pages; and what they do not wait for."""

import logging
import random
import stat
import sys
import threading
from contextlib import closing
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from cvfs import pieces
from cvfs.cache import Cache
from cvfs.cli.pinning import _list
from cvfs.errors import CacheError
from cvfs.fetcher import Budget, Fetcher, Shared
from cvfs.fetcher.shared import weigh
from cvfs.format.blob import seal
from cvfs.format.pages import Child, decode_page, encode_inner, encode_leaf, encode_locations
from cvfs.inodes import Numbering
from cvfs.mirrors import Mirrors, Network
from cvfs.model import NO_CONTENT, BlobRef, Content, Digest, Entry, Location, Manifest, Record, Summary
from cvfs.mount.upkeep import give_back_when_idle, keep_pages_young, keep_within_limits
from cvfs.transport import Transport
from cvfs.trees.walk import resolve
from tests.core.world import Client, World, until
from tests.small_store import SmallStore, make_entry

RANDOM = random.Random(1)
TOP = Record(b"", make_entry(b"", stat.S_IFDIR | 0o755), NO_CONTENT)


def digest_of(number: int) -> Digest:
    return Digest(b"%032d" % number)


def file(number: int, size: int, **facts: Any) -> Entry:
    made = make_entry(b"file-%05d" % number, stat.S_IFREG | 0o644, data=b"%d" % number)
    return msgspec.structs.replace(made, size=size, mtime_ns=10**18 + number, **facts)


def chunks(count: int, in_each_pack: int) -> list[Location]:
    packs = [BlobRef(digest_of(number), 3 << 20, 4 << 20) for number in range(count)]
    return [
        Location(at << 20, 1 << 20, packs[at // in_each_pack], (at % in_each_pack) << 20, RANDOM.randbytes(32))
        for at in range(count)
    ]


def small_files(**facts: Any) -> bytes:
    pack = BlobRef(digest_of(1), 500_000, 1 << 20)
    where = [Content((Location(0, 3000 + number, pack, number * 40, b""),)) for number in range(500)]
    return encode_leaf([Record(b"d", file(number, 3000 + number, **facts), where[number]) for number in range(500)])


XATTRS = tuple((b"user.%d" % number, b"value %d" % number) for number in range(8))
PAGES = {
    "small files": small_files(),
    "attributes": small_files(xattrs=XATTRS),
    "a directory for each": encode_leaf(
        [Record(b"%05d" % i, make_entry(b"x", stat.S_IFLNK | 0o777, target=b"y"), NO_CONTENT) for i in range(500)]
    ),
    "a file of 4 GB": encode_leaf([Record(b"d", file(1, 4000 << 20), Content(tuple(chunks(4000, 4))))]),
    "a page of locations": encode_locations(chunks(4000, 1)),
    "an inner page": encode_inner(
        1, [Child(b"dir", b"%05d" % i, BlobRef(digest_of(i), 1, 1), 1, 0) for i in range(16_000)]
    ),
}


def deep_size(value: object, seen: set[int]) -> int:
    if id(value) in seen:
        return 0
    seen.add(id(value))
    parts: Any = ()
    if isinstance(value, msgspec.Struct):
        parts = [getattr(value, name) for name in value.__struct_fields__]
    elif isinstance(value, tuple | list):
        parts = value
    return sys.getsizeof(value) + sum(deep_size(part, seen) for part in parts)


@pytest.mark.parametrize("plain", PAGES.values(), ids=PAGES)
def test_a_page_weighs_what_it_takes(plain: bytes) -> None:
    page, (ref, _) = decode_page(plain), seal(plain)
    size = deep_size(page, set())
    assert 0.95 * size < weigh(ref, page) < 2.5 * size + 5000


def two_leaves(store: SmallStore) -> Manifest:
    """Three pages, as small as they can be."""
    links = [Record(b"", make_entry(name, stat.S_IFLNK | 0o777, target=b"x"), NO_CONTENT) for name in (b"a", b"b")]
    leaves = [store.put(encode_leaf([TOP, links[0]])), store.put(encode_leaf([links[1]]))]
    children = [Child(b"", b"", leaves[0], 2, 1), Child(b"", b"b", leaves[1], 1, 1)]
    root = store.put(encode_inner(1, children))
    return Manifest("pages.example.org", 1, 0, root, 1, Summary(3, 0), None)


def test_pages_that_outweigh_all_memory_do_not_put_each_other_out(world: World) -> None:
    """A publisher may make two of them that one question needs."""
    world.small = two_leaves(SmallStore(world.store.path))

    async def work(client: Client) -> None:
        with trio.fail_after(5):
            for name in (b"a", b"b", b"a"):
                assert (await client.lookup(name)).entry.name == name

    world.run(work, budget=Budget(page_bytes=1000))


def test_repositories_share_one_budget(world: World) -> None:
    tree: dict[bytes, str] = {b"d%02d/%05d" % (i // 1000, i): "target" for i in range(15_000)}
    manifest = SmallStore(world.store.path, "one.example.org").publish(tree)
    shared = Shared(Budget(page_bytes=1_000_000))

    async def walk(client: Client) -> int:
        for directory in (await client.items(b""))[2:]:
            await client.items(directory.name)
        return len(client.fetcher.pages_in_memory())

    async def main() -> None:
        with closing(Transport(user_agent="test")) as transport, closing(Cache(world.cache)) as cache:
            async with trio.open_nursery() as nursery:
                mirrors = Mirrors(Network(transport), [world.server.url])
                numberings = map(Numbering, ("one", "two", "three"))
                fetchers = [Fetcher(mirrors, cache, numbering, nursery, shared=shared) for numbering in numberings]
                alone = [await walk(Client(manifest, fetcher, cache)) for fetcher in fetchers]
                assert min(alone) > 7
                assert sum(len(fetcher.pages_in_memory()) for fetcher in fetchers) == len(shared.pages) < sum(alone)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert shared.pages.weight <= 1_000_000


def test_a_pin_lists_pages_that_are_not_in_memory_any_more(world: World) -> None:
    """Of a tree of three levels, of which memory holds twenty pages."""
    store = SmallStore(world.store.path)
    records = [Record(b"", make_entry(b"%03d" % i, stat.S_IFLNK | 0o777, target=b"x"), NO_CONTENT) for i in range(60)]
    leaves = [store.put(encode_leaf([TOP, each] if each is records[0] else [each])) for each in records]
    first = [b"" if number == 0 else record.entry.name for number, record in enumerate(records)]
    inner = []
    for start in range(0, 60, 15):
        children = [Child(b"", first[at], leaves[at], 1 + (at == 0), 1) for at in range(start, start + 15)]
        inner.append(store.put(encode_inner(1, children)))
    root = store.put(
        encode_inner(2, [Child(b"", first[at * 15], ref, 15 + (at == 0), 15) for at, ref in enumerate(inner)])
    )
    world.small = Manifest("pages.example.org", 1, 0, root, 2, Summary(61, 60), None)

    async def work(client: Client) -> set[bytes]:
        found: Any = await _list(client, await resolve(client.repository, b""))  # type: ignore[arg-type]
        assert len(client.fetcher.pages_in_memory()) == 20
        return set(found.ids)

    ids = world.run(work, budget=Budget(page_bytes=1000))
    assert {root.id, *(ref.id for ref in inner), *(ref.id for ref in leaves)} <= ids


def test_a_page_is_answered_before_the_cache_has_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may be full, slow, or locked by another process that makes room."""
    world.publish({"f": b"data"})
    may_store = threading.Event()

    async def work(client: Client) -> None:
        store = client.cache.store_blob

        def wait_and_store(*args: Any) -> None:
            may_store.wait(20)
            store(*args)

        monkeypatch.setattr(client.cache, "store_blob", wait_and_store)
        with trio.fail_after(5):
            assert (await client.lookup(b"f")).entry.name == b"f"
        assert not list((world.cache / "blobs").glob("*/*"))
        may_store.set()
        await until(lambda: list((world.cache / "blobs").glob("*/*")))

    try:
        world.run(work)
    finally:
        may_store.set()


@pytest.mark.parametrize("disk_fails", [False, True])
def test_packs_and_pieces_are_held_while_somebody_reads(
    world: World, monkeypatch: pytest.MonkeyPatch, *, disk_fails: bool
) -> None:
    """But what the cache could not take is held on to: the next reader would have to have it fetched again."""
    monkeypatch.setattr("cvfs.mount.upkeep._PAUSE_S", 0.05)
    large = RANDOM.randbytes(5 << 20)
    world.publish({"small": b"a few bytes", "other": RANDOM.randbytes(200_000), "large": large})

    def fail(*_: Any) -> None:
        raise CacheError("no space")

    async def work(client: Client) -> None:
        packs, whole = client.fetcher._packs.packs, client.fetcher._packs.pieces
        shared = Shared()
        shared.packs, shared.pieces, shared.activity = packs, whole, client.fetcher._packs._activity
        if disk_fails:
            monkeypatch.setattr(client.cache, "store_pack", fail)
            monkeypatch.setattr("cvfs.pieces._put", fail)
        assert await client.read(b"small") == b"a few bytes"
        assert await client.read(b"large") == large
        await until(lambda: all(pack.was_taken is not disk_fails for pack in packs.values()))
        whole.put("a piece", large, len(large))
        held = len(packs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_back_when_idle, shared)
            await until(lambda: not len(whole))
            assert len(packs) == (held if disk_fails else 0)
            assert held >= 2
            nursery.cancel_scope.cancel()

    world.run(work)


def test_packs_are_held_until_a_slow_disk_has_taken_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish({"small": b"a few bytes", "large": RANDOM.randbytes(5 << 20)})
    may_store = threading.Event()

    async def work(client: Client) -> None:
        store, put = client.cache.store_pack, pieces._put
        monkeypatch.setattr(client.cache, "store_pack", lambda *given: (may_store.wait(20), store(*given)))
        monkeypatch.setattr("cvfs.pieces._put", lambda *given: (may_store.wait(20), put(*given)))
        shared = Shared()
        shared.packs = client.fetcher._packs.packs
        await client.read(b"small")
        await client.read(b"large")
        held = len(shared.packs)
        shared.rest()
        assert len(shared.packs) == held >= 2
        may_store.set()
        await until(lambda: (shared.rest(), not len(shared.packs))[1])

    try:
        world.run(work)
    finally:
        may_store.set()


def test_a_slow_reader_is_one_who_reads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one who takes longer for a pack than the pause lasts, and brings nothing meanwhile."""
    world.publish({f"f{number}": b"%d" % number for number in range(20)})

    async def work(client: Client) -> None:
        activity = client.fetcher._packs._activity
        await client.read(b"f0")
        for number in range(1, 20):
            await trio.testing.wait_all_tasks_blocked()
            activity._noted = trio.Event()
            assert await client.read(b"f%d" % number) == b"%d" % number
            assert activity.goes_on

    world.run(work)


def test_what_nobody_expected_of_upkeep_ends_no_client(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and tried again an hour later."""

    class Broken:
        calls = 0

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self) -> bool:
            Broken.calls += 1
            raise OSError("nobody expected that")

        read = maintain = touch_pages = __call__

    async def main() -> None:
        broken: Any = Broken()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_within_limits, broken)
            nursery.start_soon(keep_pages_young, broken)
            with trio.fail_after(1000 * 3600):  # a busy machine lets hours of this clock pass while a thread begins
                while Broken.calls < 6:  # noqa: ASYNC110
                    await trio.sleep(3600)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))
    assert len([record for record in caplog.records if record.exc_info]) == Broken.calls


@pytest.mark.parametrize("what", ["page", "pack"])
def test_what_nobody_expected_of_the_cache_ends_no_client(
    world: World, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.publish({"f": b"data"})

    def fail(*_: object) -> None:
        raise RuntimeError("nobody expected that")

    async def work(client: Client) -> None:
        if what == "page":
            monkeypatch.setattr(client.cache, "store_blob", fail)
        else:
            monkeypatch.setattr(client.cache, "store_pack", fail)
        assert await client.read(b"f") == b"data"
        await until(lambda: client.fetcher.counters.uncached)
        assert await client.read(b"f") == b"data"

    world.run(work)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "nobody expected that" in record.getMessage()
    assert record.exc_info
