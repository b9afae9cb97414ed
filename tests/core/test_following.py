"""The next file of a directory, ready before it is asked for: never the wrong bytes, and no work for who reads here
and there."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from cvfs.file import File, Parts
from tests.core.world import Client, World
from tests.publisher.stores import NAME
from tests.small_store import SmallStore

WHOLE = 128 << 10
FILES = {b"d/%02d" % number: b"content of %d" % number for number in range(20)}


async def numbers(client: Client, files: dict[bytes, bytes] = FILES) -> dict[bytes, int]:
    """The inode of each file; all of them are in memory then."""
    found = {}
    for path in files:
        found[path] = (await client.lookup(path)).inode
        await client.read(path)
    client.fs._files.clear()
    return found


def read(client: Client, inode: int, offset: int = 0, length: int = WHOLE) -> bytes | None:
    """As an engine does it."""
    parts = client.fs.read_parts_nowait(inode, offset, length)
    if parts is None:
        return None
    client.fs.make_ready(inode)
    return b"".join(parts)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often a file is read out of the pack or cache that has it, as the only item of a list."""
    times = [0]
    real = File.read_parts_nowait

    def counted(self: File, offset: int, length: int) -> Parts | None:
        times[0] += 1
        return real(self, offset, length)

    with monkeypatch.context() as patch:
        patch.setattr(File, "read_parts_nowait", counted)
        yield times


def test_who_reads_in_order_finds_the_next_file_ready(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.small = SmallStore(world.store.path, NAME).publish(FILES)

    async def work(client: Client) -> None:
        inodes = await numbers(client)
        with counting(monkeypatch) as times:
            for count, (path, inode) in enumerate(inodes.items(), 1):
                before = times[0]
                parts = client.fs.read_parts_nowait(inode, 0, WHOLE)
                assert parts is not None
                assert b"".join(parts) == FILES[path]
                assert times[0] - before == (1 if count <= 2 else 0)
                client.fs.make_ready(inode)
            assert times[0] == len(FILES)  # each once, and nothing behind the last

    world.run(work)


def test_who_reads_here_and_there_has_nothing_made_ready(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.small = SmallStore(world.store.path, NAME).publish(FILES)

    async def work(client: Client) -> None:
        inodes = await numbers(client)
        backwards = list(reversed(inodes.items()))
        far_apart = [*inodes.items()][::9]
        with counting(monkeypatch) as times:
            for path, inode in [*backwards, *far_apart]:
                assert read(client, inode) == FILES[path]
            assert times[0] == len(backwards) + len(far_apart)

    world.run(work)


def test_a_guess_that_was_wrong_is_not_repeated_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two workers that share one reader, each sees every other file."""
    world.small = SmallStore(world.store.path, NAME).publish(FILES)

    async def work(client: Client) -> None:
        inodes = await numbers(client)
        every_other = [*inodes.items()][::2]
        with counting(monkeypatch) as times:
            for path, inode in every_other:
                assert read(client, inode) == FILES[path]
            assert times[0] <= len(every_other) * 3 // 2

    world.run(work)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_asked_in_whatever_order_gets_its_own_bytes(world: World, seed: int) -> None:
    """Directories, links, empty and large files between the small ones; parts of files; and a revision in the middle in
    which some have changed, of which whoever has the old ones open reads the old."""
    chance = random.Random(seed)
    files = {
        b"d/%02d" % number: chance.randbytes(chance.choice([0, 1, 50, 5000, WHOLE, WHOLE + 1, 300_000]))
        for number in range(20)
    }
    store = SmallStore(world.store.path, NAME)
    world.small = store.publish(files)

    async def work(client: Client) -> None:
        inodes = await numbers(client, files)
        contents = {inode: files[path] for path, inode in inodes.items()}
        order = list(inodes.values())
        at = 0
        for step in range(200):
            if step == 100:
                changed = files | {path: b"changed " + path for path in list(files)[::2]}
                client.fs.switch(client.repository.at(store.publish(changed)))
                inodes = await numbers(client, changed)
                contents |= {inode: changed[path] for path, inode in inodes.items()}
                order = list(contents)
            at = (at + 1) % len(order) if chance.random() < 0.8 else chance.randrange(len(order))
            inode = order[at]
            offset, length = chance.choice([(0, WHOLE), (0, WHOLE), (0, WHOLE), (0, 10), (7, WHOLE)])
            data = read(client, inode, offset, length)
            if data is None:
                file = await client.fs.bring(partial(client.fs.file_nowait, inode))
                data = bytes(await file.read(offset, length))
            assert data == contents[inode][offset : offset + length]

    world.run(work)


def test_nothing_is_fetched_for_it(world: World) -> None:
    """What is neither in memory nor in the cache is left to who asks for it."""
    world.small = SmallStore(world.store.path, NAME).publish(FILES)

    async def work(client: Client) -> None:
        client.fetcher.bring_only_what_is_asked()  # no packs ahead either
        inodes = [(await client.lookup(path)).inode for path in FILES]
        for path in (b"d/00", b"d/01"):
            await client.read(path)
        client.fs._files.clear()
        await client.fetcher.wait_until_stored()
        before = world.data_requests()
        assert [read(client, inode) for inode in inodes[:3]] == [b"content of 0", b"content of 1", None]
        assert world.data_requests() == before

    world.run(work)
