"""Contents of every shape: sizes around the limits, holes, chunks, location pages, far offsets."""

import os
import random
import stat
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cvfs.fetcher import Budget
from cvfs.file import File, _overlapping
from cvfs.filesystem import FileSystem
from cvfs.format.blob import digest
from cvfs.format.tree import build
from cvfs.model import NO_CONTENT, BlobRef, Content, Digest, Location, Manifest, Record
from tests.core.world import Client, World, no_server
from tests.small_store import SmallStore, make_entry

MIB = 1 << 20
GIB = 1 << 30
PACK = BlobRef(Digest(b"p" * 32), 10, 10)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1])
def test_sizes_around_the_limits(world: World, size: int) -> None:
    data = random.Random(size).randbytes(size)
    world.publish({"f": data})

    async def work(client: Client) -> None:
        node = await client.lookup(b"f")
        assert (node.size, node.blocks) == (size, (size + 511) // 512)
        assert await client.read(b"f") == data
        for offset in {0, 1, size // 2, max(size - 1, 0), size, size + 1, 1 << 62}:
            for length in (0, 1, 5000, 1 << 20):
                assert await client.read(b"f", offset, length) == data[offset : offset + length]

    world.run(work)
    with no_server(world):
        assert world.read(b"f") == [data]


def test_sparse_file_of_five_gib_is_read_beyond_four(world: World, tmp_path: Path) -> None:
    tree = tmp_path / "sparse"
    tree.mkdir()
    size, marks = (
        5 * GIB + 12345,
        {0: b"first", 4 * GIB - 2: b"across", 4 * GIB + 77: b"beyond", 5 * GIB + 12340: b"last!"},
    )
    with (tree / "f").open("wb") as file:
        for offset, mark in marks.items():
            os.pwrite(file.fileno(), mark, offset)
    world.store.publish(tree)

    async def work(client: Client) -> None:
        node = await client.lookup(b"f")
        assert node.size == size
        assert node.blocks * 512 < 64 * MIB  # what du shows is what is stored
        for offset, mark in marks.items():
            assert await client.read(b"f", offset, len(mark)) == mark
        assert await client.read(b"f", 3 * GIB, 2 * MIB) == bytes(2 * MIB)
        assert await client.read(b"f", size - 3, 100) == b"st!"
        assert await client.read(b"f", size, 100) == b""

    world.run(work)
    [cached] = (world.cache / "large").glob("*/*")
    assert cached.stat().st_size == size
    assert cached.stat().st_blocks * 512 < 64 * MIB
    with no_server(world):
        world.run(work)


def test_file_that_is_one_hole(world: World, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/f").touch()
    os.truncate(tmp_path / "tree/f", 50 * MIB)
    world.store.publish(tmp_path / "tree")

    async def work(client: Client) -> None:
        node = await client.lookup(b"f")
        assert (node.size, node.blocks) == (50 * MIB, 0)
        assert await client.read(b"f", 49 * MIB) == bytes(MIB)

    world.run(work)


def test_file_of_many_chunks_is_read_through_location_pages(world: World) -> None:
    data = random.Random(1).randbytes(110 * MIB)
    world.publish({"f": data, "small": b"small"})

    async def work(client: Client) -> None:
        assert (await client.found(b"f")).record.content.location_pages
        spots = random.Random(2)
        for _ in range(30):
            offset, length = spots.randrange(len(data)), spots.choice([1, 5000, 131072, 3 * MIB])
            assert await client.read(b"f", offset, length) == data[offset : offset + length]
        assert await client.read(b"f", 109 * MIB) == data[109 * MIB :]
        assert await client.read(b"small") == b"small"

    world.run(work)
    with no_server(world):
        assert world.read(b"small") == [b"small"]


def test_open_files_hold_no_pages(world: World) -> None:
    """A file in use must not keep the page alive that lists it: pages have a budget."""
    world.publish({f"{'n' * 100}{i:05}": b"%d" % i for i in range(3000)})

    async def work(client: Client) -> None:
        fs: FileSystem = client.fs
        for i in range(0, 3000, 50):
            inode = (await client.lookup(b"n" * 100 + b"%05d" % i)).inode
            file = await fs.bring(lambda inode=inode: fs.file_nowait(inode))
            assert bytes(await file.read(0, 10)) == b"%d" % i
            assert not [name for name, value in vars(file).items() if hasattr(value, "groups")]
        assert client.fetcher._pages._memory.weight <= 600_000

    world.run(work, budget=Budget(page_bytes=600_000))


def test_chunks_that_the_kernel_has_in_memory_are_read_without_a_wait(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(3).randbytes(3 * MIB) + bytes(8 * MIB) + random.Random(4).randbytes(20 * MIB)
    world.publish({"f": data})
    assert world.read(b"f") == [data]
    ranges = [(0, MIB), (MIB - 5, MIB), (3 * MIB - 1, MIB), (5 * MIB, MIB), (len(data) - 3, MIB), (len(data), 1)]

    def parts_of(file: File, offset: int, length: int) -> bytes | None:
        parts = file.read_parts_nowait(offset, length)
        return None if parts is None else b"".join(parts)

    async def work(client: Client) -> None:
        file = await client.file(b"f")
        for offset, length in ranges:
            assert parts_of(file, offset, length) == data[offset : offset + length]
        assert parts_of(file, 0, len(data)) is None, "too many chunks for one turn"

    async def without(client: Client) -> None:
        file = await client.file(b"f")
        assert parts_of(file, 0, MIB) is None
        assert await file.read(0, MIB) == data[:MIB]

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", raise_blocking)  # as where the disk has to be asked
        world.run(without)
    preadv = os.preadv
    # Not every file system can tell: tmpfs cannot.
    monkeypatch.setattr(os, "preadv", lambda fd, into, offset, flags: preadv(fd, into, offset))
    world.run(work)
    [cached] = (world.cache / "large").glob("*/*")
    with cached.open("r+b") as file:
        file.write(b"altered")
    world.run(without)
    world.run(work)
    cached.unlink()
    world.run(without)


def test_one_file_at_a_time_is_read_in_the_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads read the others that are read at the same moment."""
    world.publish({"a": random.Random(6).randbytes(9 * MIB), "b": random.Random(7).randbytes(9 * MIB)})
    world.read(b"a", b"b")
    preadv, now = os.preadv, [1000.0]
    monkeypatch.setattr(os, "preadv", lambda fd, into, offset, flags: preadv(fd, into, offset))

    async def work(client: Client) -> None:
        files = [await client.file(name) for name in (b"a", b"b")]
        client.fetcher._packs.pieces.clear()
        client.fetcher._packs.packs.clear()
        monkeypatch.setattr("cvfs.fetcher.packs.time.monotonic", lambda: now[0])
        a, b = (file.read_parts_nowait for file in files)
        assert a(0, 1)
        assert b(0, 1) is None
        assert a(8 * MIB, 1)
        now[0] += 1
        assert b(0, 1)
        assert a(4 * MIB, 1) is None

    world.run(work)


def raise_blocking(*_: object) -> int:
    raise BlockingIOError


def test_chunks_without_end_let_others_have_their_turn(world: World) -> None:
    """Chunks of one byte are legal. A read of very many that are all cached is many waits, and few parts."""
    size = 4000
    store = SmallStore(world.store.path)
    data = random.Random(1).randbytes(size)
    pack = store.put(data)
    locations = [Location(at, 1, pack, at, digest(data[at : at + 1])) for at in range(size)]
    record = Record(b"", make_entry(b"f", stat.S_IFREG | 0o644, data=data), Content(tuple(locations)))
    top = Record(b"", make_entry(b"", stat.S_IFDIR | 0o755), NO_CONTENT)
    root = build([top, record], store.put)
    world.small = Manifest("crumbs.example.org", 1, 0, root.page, root.level, root.summary, None)

    async def work(client: Client) -> None:
        assert await client.read(b"f") == data
        file = await client.file(b"f")
        assert file.read_parts_nowait(0, size) is None
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            parts = await file.read_parts(0, size)
            nursery.cancel_scope.cancel()
        assert turns > 20
        assert b"".join(parts) == data
        assert len(parts) < 1000
        with trio.CancelScope() as deadline:
            deadline.cancel()
            await file.read_parts(0, size)
        assert deadline.cancelled_caught

    world.run(work)


@settings(max_examples=200)
@given(st.data())
def test_overlapping_locations(data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, 50), unique=True, max_size=10).map(sorted))
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    locations = [Location(start, end - start, PACK, 0, b"") for start, end in pairs]
    offset = data.draw(st.integers(0, 50))
    end = data.draw(st.integers(offset + 1, 52))
    wanted = [at for at in locations if at.object_offset < end and offset < at.object_offset + at.length]
    assert list(_overlapping(locations, offset, end)) == wanted
