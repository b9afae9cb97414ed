"""What is fetched before anyone asks for it."""

import os

import trio.testing

from cvfs.errors import TransportError
from cvfs.model import BlobRef, Digest
from tests.core.test_fetcher import noise
from tests.core.world import Client, World, until
from tests.servers import hang

SIZE = 400_000
FILES = {f"f{number:02}": noise(SIZE, number) for number in range(16)}
MANY = {f"m{number:04}": noise(6000, number) for number in range(2400)}
"""In several leaves of several packs each."""
LARGE = {"large": noise(24 << 20, 1)}


async def packs_of(client: Client, names: dict[str, bytes]) -> list[list[str]]:
    """The names in each pack, in order."""
    found: dict[bytes, list[str]] = {}
    for name in sorted(names):
        found.setdefault((await client.pack_of(os.fsencode(name))).id, []).append(name)
    return list(found.values())


def test_who_reads_packs_in_their_order_finds_the_next_one_there(world: World) -> None:
    world.publish(FILES)

    async def work(client: Client) -> None:
        packs = await packs_of(client, FILES)
        assert len(packs) >= 5
        await client.read(os.fsencode(packs[0][0]))
        assert client.fetcher.counters.ahead == 0
        await client.read(os.fsencode(packs[1][0]))
        await until(lambda: client.fetcher.counters.ahead == 1)
        assert client.fetcher.counters.fetched_blobs == before + 3
        misses = client.fetcher.counters.misses
        for name in packs[2]:
            assert await client.read(os.fsencode(name)) == FILES[name]
        assert client.fetcher.counters.misses == misses
        await until(lambda: client.fetcher.counters.ahead == 2)

    before = 1  # the page
    world.run(work)
    assert set(world.data_requests().values()) == {1}


def test_the_next_leaf_and_its_first_pack_come_ahead_too(world: World) -> None:
    world.publish(MANY)

    async def look(client: Client) -> list[tuple[bytes, Digest, Digest]]:
        """Of each file: its name, its leaf and its pack."""
        names = map(os.fsencode, MANY)
        return [(name, (await client.found(name)).page.id, (await client.pack_of(name)).id) for name in names]

    async def work(client: Client) -> None:
        begun: set[Digest] = set()
        for name, leaf, pack in files:
            if pack not in begun and len(begun) >= 2:
                assert client.fetcher._packs.packs.get(pack) is not None
                assert leaf in client.fetcher.pages_in_memory()
            begun.add(pack)
            assert await client.read(name) == MANY[os.fsdecode(name)]
            await until(lambda: not client.fetcher._packs.ahead.is_busy)
        assert client.fetcher.counters.ahead == len(begun) - 2

    files = world.run(look, cache=world.top / "other")
    assert len({leaf for _, leaf, _ in files}) >= 3
    world.server.requests.clear()
    world.run(work)
    assert set(world.data_requests().values()) == {1}


def test_a_next_leaf_that_cannot_be_had_harms_nobody(world: World) -> None:
    world.publish(MANY)

    async def look(client: Client) -> tuple[str, BlobRef]:
        first = (await client.found(b"m0000")).page
        names = [name for name in MANY if (await client.found(os.fsencode(name))).page == first]
        following = (await client.found(os.fsencode(f"m{len(names):04}"))).page
        assert following != first
        return names[-1], following

    async def work(client: Client) -> None:
        world.server.misbehave(hang, path=world.url_path(following))
        for name in [name for name in MANY if name <= last]:
            assert await client.read(os.fsencode(name)) == MANY[name]
        await until(lambda: world.server.requests[world.url_path(following)])
        await until(lambda: not client.fetcher._packs.ahead.is_busy)
        world.server.recover()
        await attempt_until(client, f"m{int(last[1:]) + 1:04}")

    last, following = world.run(look, cache=world.top / "other")
    world.server.requests.clear()
    world.run(work, deadline_s=2)


def test_who_reads_here_and_there_gets_nothing_else(world: World) -> None:
    world.publish(FILES)

    async def work(client: Client) -> None:
        packs = await packs_of(client, FILES)
        for names in (packs[3], packs[0], packs[2]):
            await client.read(os.fsencode(names[0]))
        assert client.fetcher.counters.ahead == 0

    world.run(work)


def test_chunks_of_a_large_file_come_ahead_too(world: World) -> None:
    world.publish(LARGE)

    async def work(client: Client) -> None:
        for offset in range(0, len(LARGE["large"]), 1 << 20):
            assert await client.read(b"large", offset, 1 << 20) == LARGE["large"][offset : offset + (1 << 20)]
        assert client.fetcher.counters.ahead > 0

    world.run(work)
    assert set(world.data_requests().values()) == {1}


def test_what_cannot_be_brought_ahead_harms_nobody_else(world: World) -> None:
    world.publish(FILES)

    async def work(client: Client) -> None:
        packs = await packs_of(client, FILES)
        hanging = world.url_path(await client.pack_of(os.fsencode(packs[2][0])))
        world.server.misbehave(hang, path=hanging)
        for names in packs[:2]:
            await client.read(os.fsencode(names[0]))
        await until(lambda: hanging in world.server.requests)
        for name in (*packs[1], *packs[3]):
            assert await client.read(os.fsencode(name)) == FILES[name]
        world.server.recover()
        await attempt_until(client, packs[2][0])

    world.run(work, deadline_s=2)


async def attempt_until(client: Client, name: str) -> None:
    with trio.fail_after(20):
        while await attempt(client, name) is None:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.05)


async def attempt(client: Client, name: str) -> bytes | None:
    """A failure that took long is shared for a moment."""
    try:
        return await client.read(os.fsencode(name))
    except TransportError:
        return None


def test_a_chain_of_packs_is_not_run_down(world: World) -> None:
    """One pack ahead of the reader, however long he waits."""
    world.publish(FILES)

    async def work(client: Client) -> None:
        packs = await packs_of(client, FILES)
        for names in packs[:2]:
            await client.read(os.fsencode(names[0]))
        await until(lambda: client.fetcher.counters.fetched_blobs == 4)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert client.fetcher.counters.fetched_blobs == 4

    world.run(work)
