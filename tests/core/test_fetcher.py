"""What is read is right and comes from the server once, whoever asks and whatever becomes of disk and server."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from msgspec.structs import asdict

from cvfs.errors import IntegrityError, TransportError
from cvfs.fetcher import Budget
from cvfs.format.blob import digest
from cvfs.model import BlobRef
from tests.core.world import Client, World, no_server, until
from tests.servers import Fault, flip, grow, hang, shorten, status, truncate

MIB = 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


SMALL = {f"d{i // 10}/f{i:03}": noise(3000 + i, i) for i in range(60)}
LARGE = noise(9 * MIB, 1)
ALL = {**SMALL, "large": LARGE}


@pytest.fixture
def full(world: World) -> World:
    world.publish(ALL)
    return world


# Once


def test_all_is_right_and_each_blob_is_asked_for_once(full: World) -> None:
    assert full.read(*map(os.fsencode, ALL)) == list(ALL.values())
    assert set(full.data_requests().values()) == {1}


def test_second_client_needs_no_byte(full: World) -> None:
    full.read(*map(os.fsencode, ALL))
    full.server.requests.clear()
    assert full.read(*map(os.fsencode, ALL)) == list(ALL.values())
    assert not full.data_requests()


def test_processes_at_once_fetch_each_blob_once(full: World) -> None:
    readers = [full.reader(*names, extra=["--wait"]) for names in (list(ALL), list(ALL)[::-1], list(ALL))]
    for reader in readers:
        assert reader.stdout
        assert reader.stdout.readline() == "ready\n"
    full.server.requests.clear()
    for reader in readers:
        assert reader.stdin
        reader.stdin.write("go\n")
        reader.stdin.flush()
    wanted = {name: digest(data).hex() for name, data in ALL.items()}
    for reader in readers:
        assert full.answers(reader)["answers"] == wanted
    assert set(full.data_requests().values()) == {1}


def test_tasks_at_once_fetch_each_blob_once(full: World) -> None:
    async def work(client: Client) -> None:
        async with trio.open_nursery() as nursery:
            for name, data in [*ALL.items()] * 3:
                nursery.start_soon(check, client, name, data)

    async def check(client: Client, name: str, data: bytes) -> None:
        assert await client.read(os.fsencode(name)) == data

    full.run(work)
    assert set(full.data_requests().values()) == {1}


def test_two_repositories_in_one_process_share_a_fetch(full: World) -> None:
    async def work(client: Client) -> None:
        manifest = full.store.manifest
        twin = type(client)(manifest, client.fetcher, client.cache)
        async with trio.open_nursery() as nursery:
            for each in (client, twin):
                nursery.start_soon(each.read, b"large")

    full.run(work)
    assert set(full.data_requests().values()) == {1}


# The server is gone


@pytest.mark.parametrize("name", ["d3/f031", "large"])
def test_what_was_read_is_cached_even_if_the_client_ends_at_once(full: World, name: str) -> None:
    full.read(name.encode())
    with no_server(full):
        assert full.read(name.encode()) == [ALL[name]]


def test_every_file_of_a_pack_is_cached_whoever_brought_it(world: World) -> None:
    """A pack that two leaves share is brought by a reader of one; files of the other are read from memory."""
    files = {f"{'x' * 180}{i:05}": b"%d" % i for i in range(6000)}
    world.publish(files)
    names = [name.encode() for name in files]

    async def work(client: Client) -> tuple[int, int]:
        leaves = {(await client.found(name)).page.id for name in names}
        packs = {(await client.pack_of(name)).id for name in names}
        for name in names:
            await client.read(name)
        return len(leaves), len(packs)

    leaves, packs = world.run(work)
    assert leaves > packs
    with no_server(world):
        assert world.read(*names) == list(files.values())


def test_a_chunk_that_two_large_files_share_is_cached_in_both(world: World) -> None:
    common = noise(6 * MIB, 2)
    files = {"a": common, "b": common + noise(MIB, 3)}
    world.publish(files)
    world.read(b"a", b"b")
    with no_server(world):
        assert world.read(b"a", b"b") == list(files.values())


def test_server_gone_in_a_fresh_process(full: World) -> None:
    full.read(b"d0/f001", b"large")
    with no_server(full):
        answers = full.answers(full.reader("d0/f001", "large"))["answers"]
    assert answers == {name: digest(ALL[name]).hex() for name in ("d0/f001", "large")}


def test_what_was_not_read_is_an_error_within_the_deadline(full: World) -> None:
    full.read(b"d0/f001")
    with no_server(full):
        start = time.monotonic()
        with pytest.raises(TransportError):
            full.read(b"large", deadline_s=1)
        assert time.monotonic() - start < 3


def test_server_that_hangs_is_an_error_within_the_deadline(full: World) -> None:
    full.read(b"d0/f001")
    full.server.misbehave(hang)
    start = time.monotonic()
    with pytest.raises(TransportError):
        full.read(b"large", deadline_s=0.5)
    assert time.monotonic() - start < 3


# The cache is damaged


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"!!!")


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


def replaced_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replaced_by_a_link(path: Path) -> None:
    other = path.with_name("other")
    path.rename(other)
    path.symlink_to(other)


DAMAGES = [
    truncated,
    emptied,
    overwritten,
    grown,
    Path.unlink,
    replaced_by_a_directory,
    replaced_by_a_fifo,
    replaced_by_a_link,
]


@pytest.mark.parametrize("kind", ["objects", "packs", "large", "blobs"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_of_the_cache_is_never_served(full: World, kind: str, damage: Callable[[Path], None]) -> None:
    async def fill(client: Client) -> None:
        for name in ALL:
            await client.read(os.fsencode(name))
        if kind == "objects":
            await client.explode()

    full.run(fill)
    files = [path for path in (full.cache / kind).glob("*/*") if path.is_file()]
    assert files
    for path in files:
        damage(path)
    assert full.read(*map(os.fsencode, ALL)) == list(ALL.values())
    full.server.requests.clear()
    assert full.read(*map(os.fsencode, ALL)) == list(ALL.values())
    assert not full.data_requests()


def test_damage_under_a_client_is_noticed(full: World) -> None:
    async def work(client: Client) -> None:
        await client.read(b"d2/f020")
        await client.explode()
        path = Path(os.fsdecode(client.cache.objects.path(digest(ALL["d2/f020"]))))
        client.fetcher._packs.packs.clear()
        overwritten(path)
        assert await client.read(b"d2/f020") == ALL["d2/f020"]
        await client.explode()
        await until(lambda: path.read_bytes() == ALL["d2/f020"])

    full.run(work)


def test_damage_of_a_pack_under_a_client_is_noticed(full: World) -> None:
    async def work(client: Client) -> None:
        await client.read(b"d2/f020")
        pack = await client.pack_of(b"d2/f020")
        path = Path(os.fsdecode(client.cache.packs.path(pack.id)))
        await until(path.exists)
        overwritten(path)
        client.fetcher._packs.packs.clear()
        assert await client.read(b"d2/f020") == ALL["d2/f020"]
        await until(lambda: path.exists() and digest(path.read_bytes()) == pack.id)

    full.run(work)


def test_cache_that_is_wiped_while_in_use(full: World) -> None:
    async def work(client: Client) -> None:
        await client.read(b"d0/f001")
        pack = await client.pack_of(b"d0/f001")
        await until(lambda: client.fetcher.has_pack(pack.id))  # else it would be stored in the new one
        os.rename(full.cache, full.top / "gone")
        assert await client.read(b"large") == LARGE
        assert asdict(client.fetcher.counters)["uncached"] == 0

    full.run(work)
    with no_server(full), pytest.raises(TransportError):
        full.read(b"d0/f001", deadline_s=0.5)
    assert full.read(b"large", b"d0/f001") == [LARGE, ALL["d0/f001"]]


# The server lies


def swap(other: Path) -> Fault:
    return lambda exchange: exchange.answer(body=other.read_bytes())


@pytest.mark.parametrize("fault", [flip(0), flip(-1), truncate(50), shorten(50), grow(1), status("200 OK")])
def test_wrong_pack_is_refused_and_nothing_of_it_cached(full: World, fault: Fault) -> None:
    async def work(client: Client) -> None:
        pack = await client.pack_of(b"large")
        full.server.misbehave(fault, full.url_path(pack))
        with pytest.raises((IntegrityError, TransportError)):
            await client.read(b"large", 0, 10)
        assert await client.read(b"d1/f012") == ALL["d1/f012"]  # other files go on
        assert not list((full.cache / "large").glob("*/*"))
        full.server.recover()
        assert await client.read(b"large") == LARGE

    full.run(work)


def test_error_names_id_and_source(full: World) -> None:
    async def work(client: Client) -> None:
        pack = await client.pack_of(b"d1/f012")
        full.server.misbehave(flip(7), full.url_path(pack))
        with pytest.raises(IntegrityError) as caught:
            await client.read(b"d1/f012")
        assert caught.value.wanted == pack.id.hex() != caught.value.got
        assert full.server.url in caught.value.source
        assert client.fetcher.counters.integrity_errors == 1

    full.run(work)


@pytest.mark.parametrize("fault", [flip(3), shorten(20), grow(1)])
def test_wrong_page_is_refused_and_not_cached(full: World, fault: Fault) -> None:
    root = full.store.manifest.root

    async def work(client: Client) -> None:
        full.server.misbehave(fault, full.url_path(root))
        with pytest.raises((IntegrityError, TransportError)):
            await client.lookup(b"d1")
        assert not list((full.cache / "blobs").glob("*/*"))
        full.server.recover()
        assert await client.read(b"d1/f012") == ALL["d1/f012"]

    full.run(work)


def test_swapped_pages_and_packs_are_refused(full: World) -> None:
    async def work(client: Client) -> None:
        refs: list[BlobRef] = [
            full.store.manifest.root,
            await client.pack_of(b"large"),
            await client.pack_of(b"d1/f012"),
        ]
        for ref, other in zip(refs, [*refs[1:], refs[0]], strict=True):
            full.server.misbehave(swap(full.blob(other)), full.url_path(ref))
        for name in (b"large", b"d1/f012"):
            with pytest.raises((IntegrityError, TransportError)):
                await client.read(name)

    full.run(work)


# Limits


def test_memory_for_packs_and_pieces_is_bounded(world: World) -> None:
    files = {f"f{i}": noise(5 * MIB, i) for i in range(12)}
    world.publish(files)
    names = [name.encode() for name in files]

    async def work(client: Client) -> None:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(client.read, name)
        assert client.fetcher._packs.packs.weight <= 28 * MIB
        assert client.fetcher._packs.pieces.weight <= 12 * MIB

    world.run(work)
    assert world.read(*names) == list(files.values())


def test_packs_of_a_few_bytes_are_bounded_too(world: World) -> None:
    """Each of very many small changes brings a pack: what holds one takes more than its bytes."""

    async def work(client: Client) -> None:
        for name in names:
            await client.read(name)
        assert len(client.fetcher._packs.packs) < len(names)

    names = []
    for number in range(12):
        world.publish({f"f{earlier}": b"%d" % earlier for earlier in range(number + 1)})
        names.append(b"f%d" % number)
    world.run(work, budget=Budget(pack_bytes=32 << 10, piece_bytes=32 << 10))
