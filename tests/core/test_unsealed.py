"""What the workers of a mount share of unsealed packs: the whole thing or nothing, and nothing for longer than it is
held."""

import itertools
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio

from cvfs.errors import IntegrityError
from cvfs.fetcher import unsealed
from cvfs.fetcher.unsealed import Unsealed
from cvfs.format.blob import seal
from cvfs.format.blob import unseal as plainly
from cvfs.model import BlobRef
from tests.core.world import Client, World, opened, until

PLAIN = b"software " * 50_000


@pytest.fixture
def blob() -> tuple[BlobRef, bytes]:
    return seal(PLAIN)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Unsealed, Unsealed]:
    workers = Unsealed(), Unsealed()
    for worker in workers:
        worker.share_in(tmp_path / "packs")
    return workers


def test_what_one_has_unsealed_the_other_finds(two: tuple[Unsealed, Unsealed], blob: tuple[BlobRef, bytes]) -> None:
    ref, stored = blob
    assert not two[1].has(ref)
    assert two[1].find(ref) is None
    held = two[0].unseal(ref, stored, "a mirror")
    assert held == PLAIN
    assert two[1].has(ref)
    assert two[1].find(ref) == PLAIN


def test_it_is_there_as_long_as_its_maker_holds_it(
    two: tuple[Unsealed, Unsealed], blob: tuple[BlobRef, bytes], tmp_path: Path
) -> None:
    """And in the memory of who has found it for as long as that one wants."""
    ref, stored = blob
    held: Any = two[0].unseal(ref, stored, "a mirror")
    part = memoryview(held)[10:20]
    found = two[1].find(ref)
    del held
    assert two[1].has(ref), "a part of it is still in use"
    del part
    assert not two[1].has(ref)
    assert not list((tmp_path / "packs").iterdir())
    assert found == PLAIN


def test_who_shares_with_nobody_makes_no_file(blob: tuple[BlobRef, bytes], tmp_path: Path) -> None:
    alone = Unsealed()
    assert alone.unseal(*blob, "a mirror") == PLAIN
    assert not alone.has(blob[0])
    assert alone.find(blob[0]) is None
    assert not list(tmp_path.iterdir())


def test_another_size_than_the_file_has_is_not_found(
    two: tuple[Unsealed, Unsealed], blob: tuple[BlobRef, bytes]
) -> None:
    """Another publisher lies about a pack."""
    ref, stored = blob
    held = two[0].unseal(ref, stored, "a mirror")
    for size in (len(held) - 1, len(held) + 1, 1 << 22):
        assert two[1].find(BlobRef(ref.id, ref.stored_size, size)) is None


def test_altered_bytes_are_refused_before_anything_is_shared(
    two: tuple[Unsealed, Unsealed], blob: tuple[BlobRef, bytes], tmp_path: Path
) -> None:
    ref, stored = blob
    with pytest.raises(IntegrityError):
        two[0].unseal(ref, stored[:-1] + b"?", "a mirror")
    assert not list((tmp_path / "packs").iterdir())


@pytest.mark.parametrize("fault", ["full", "full at once", "gone", "cannot be made"])
def test_where_it_cannot_be_shared_it_is_held_alone(
    fault: str, blob: tuple[BlobRef, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, worker = tmp_path / "packs", Unsealed()
    if fault == "cannot be made":
        directory.write_bytes(b"a file")
    worker.share_in(directory)
    if fault == "full":
        monkeypatch.setattr(os, "write", lambda fd, data: len(data) - 1)
    elif fault == "full at once":
        monkeypatch.setattr(os, "write", _no_space)
    elif fault == "gone":
        directory.rmdir()
    assert worker.unseal(*blob, "a mirror") == PLAIN
    assert worker.find(blob[0]) is None
    assert not list(tmp_path.glob("packs/*"))


def _no_space(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_what_a_killed_worker_has_left_goes_when_the_next_begins(
    two: tuple[Unsealed, Unsealed], blob: tuple[BlobRef, bytes], tmp_path: Path
) -> None:
    """Half of a file too; and those who live go on with what they have."""
    ref, stored = blob
    held, found = two[0].unseal(ref, stored, "a mirror"), two[1].find(ref)
    (tmp_path / "packs" / f"{ref.id.hex()}.123-0").write_bytes(b"half")
    Unsealed().share_in(tmp_path / "packs")
    assert not list((tmp_path / "packs").iterdir())
    assert (held, found) == (PLAIN, PLAIN)


def test_nobody_sees_half_of_a_pack(
    two: tuple[Unsealed, Unsealed], blob: tuple[BlobRef, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maker stops in the middle of it, and two of its repositories have the pack."""
    ref, stored = blob
    write, half_written, go_on = os.write, threading.Event(), threading.Event()
    numbers = itertools.count()

    def write_slowly(fd: int, data: bytes) -> int:
        if next(numbers):
            return write(fd, data)
        done = write(fd, data[:100])
        half_written.set()
        assert go_on.wait(20)
        return done + write(fd, data[100:])

    monkeypatch.setattr(os, "write", write_slowly)
    first: list[Any] = []
    thread = threading.Thread(target=lambda: first.append(two[0].unseal(ref, stored, "a mirror")))
    thread.start()
    try:
        assert half_written.wait(20)
        assert two[1].find(ref) is None
        second = two[0].unseal(ref, stored, "a mirror")
        assert two[1].find(ref) == second == PLAIN
    finally:
        go_on.set()
        thread.join()
    assert first == [PLAIN]


def test_a_pack_is_fetched_and_unsealed_by_one_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the other does not wait until the cache has it: the disk may be slow."""
    count: Counter[bytes] = Counter()

    def counting(ref: BlobRef, stored: bytes, source: str) -> bytes:
        count[ref.id] += 1
        return plainly(ref, stored, source)

    monkeypatch.setattr(unsealed, "unseal", counting)
    world.publish({"a": b"small", "b": os.urandom(3000)})
    may_store = threading.Event()

    async def main() -> None:
        async with (
            opened(world.server.url, world.manifest, world.cache) as one,
            opened(world.server.url, world.manifest, world.cache) as other,
        ):
            for client in (one, other):
                client.fetcher._packs._unsealed.share_in(world.top / "packs")
            store = one.cache.store_pack
            monkeypatch.setattr(one.cache, "store_pack", lambda *given: (may_store.wait(20), store(*given)))
            pack = await one.pack_of(b"a")
            assert await other.pack_of(b"b") == pack
            with trio.fail_after(3):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(one.read, b"a")
                    nursery.start_soon(other.read, b"b")
            assert count[pack.id] == 1
            assert world.data_requests()[world.url_path(pack)] == 1
            assert not one.cache.packs.stored_bytes(pack.id)
            may_store.set()
            await until(lambda: one.cache.packs.stored_bytes(pack.id))

    try:
        trio.run(main)
    finally:
        may_store.set()


def test_the_bytes_of_another_worker_are_not_believed(world: World) -> None:
    world.publish({"a": b"small", "b": b"other"})

    async def work(client: Client) -> None:
        packs = world.top / "packs"
        client.fetcher._packs._unsealed.share_in(packs)
        pack = await client.pack_of(b"a")
        (packs / pack.id.hex()).write_bytes(bytes(pack.plain_size))
        with pytest.raises(IntegrityError):
            await client.read(b"a")

    world.run(work)
