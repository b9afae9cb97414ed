"""Publishers that lie: hashes of blobs are right, what is in them is not what it claims to be."""

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from cvfs.errors import CvfsError, FormatError, IntegrityError
from cvfs.format.blob import blob_path, digest, seal
from cvfs.format.pages import encode_locations, key_of
from cvfs.format.tree import build
from cvfs.model import NO_CONTENT, BlobRef, Content, Digest, Entry, Location, Manifest, Record
from tests.core.world import Client, World

MIB = 1 << 20


def entry(name: bytes, content_id: bytes, size: int, mode: int = stat.S_IFREG | 0o644) -> Entry:
    return Entry(name, mode, 0, 0, 0, size, 1, 0, 0, content_id, b"", ())


@dataclass
class Crafted:
    """A store whose records are written by hand."""

    path: Path

    def put(self, stored: bytes, ref: BlobRef) -> BlobRef:
        file = self.path / blob_path(ref.id)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(stored)
        return ref

    def seal(self, plain: bytes) -> BlobRef:
        ref, stored = seal(plain)
        return self.put(stored, ref)

    def manifest(self, records: Sequence[Record], name: str = "liar.example.org") -> Manifest:
        top = Record(b"", entry(b"", b"", 0, stat.S_IFDIR | 0o755), NO_CONTENT)
        root = build(sorted([top, *records], key=lambda r: key_of(r.directory, r.entry.name)), self.seal)
        return Manifest(name, 1, 0, root.page, root.level, root.summary, None)


@pytest.fixture
def crafted(world: World) -> Crafted:
    return Crafted(world.store.path)


def run(world: World, manifest: Manifest, work: Callable[[Client], object]) -> object:
    world.store = type("Fixed", (), {"manifest": manifest, "path": world.store.path})()
    return world.run(work)


def file(name: bytes, pack: BlobRef, claimed: Digest, size: int, at: int = 0) -> Record:
    return Record(b"", entry(name, claimed, size), Content((Location(0, size, pack, at, b""),)))


def chunked(name: bytes, size: int, *locations: Location) -> Record:
    return Record(b"", entry(name, digest(b"whatever it says"), size), Content(locations))


def test_false_content_id_is_refused_and_cannot_poison_the_cache(world: World, crafted: Crafted) -> None:
    honest, false = b"#!/bin/sh\n" * 100, b"#!/bin/rm\n" * 100
    pack = crafted.seal(b"ok" + false)
    manifest = crafted.manifest([file(b"lie", pack, digest(honest), 1000, 2), file(b"ok", pack, digest(b"ok"), 2)])
    world.publish({"tool": honest})
    good = world.store

    async def work(client: Client) -> None:
        with pytest.raises(IntegrityError):
            await client.read(b"lie")
        assert await client.read(b"ok") == b"ok"
        with pytest.raises(IntegrityError):
            await client.read(b"lie")
        assert client.fetcher.counters.integrity_errors >= 2

    run(world, manifest, work)
    world.store = good
    world.server.requests.clear()
    assert world.read(b"tool") == [honest]
    assert len(world.data_requests()) == 2  # a page and a pack: nothing false was there to be taken


@pytest.mark.parametrize(("kind", "by"), [("objects", -1), ("packs", -1), ("packs", 1), ("blobs", -1)])
def test_false_size_drops_nothing_of_others(world: World, crafted: Crafted, kind: str, by: int) -> None:
    data = b"#!/bin/sh\n" * 100
    world.publish({"tool": data})
    good = world.store

    async def fill(client: Client) -> BlobRef:
        await client.read(b"tool")
        if kind == "objects":
            await client.explode()
        return await client.pack_of(b"tool")

    pack, page = world.run(fill), good.manifest.root
    kept = set((world.cache / kind).glob("*/*"))
    assert kept
    manifest = crafted.manifest([file(b"lie", pack, digest(data), len(data) + by)])
    if kind == "packs":
        lie = BlobRef(pack.id, pack.stored_size + by, pack.plain_size)
        manifest = crafted.manifest([file(b"lie", lie, digest(b"another"), 7)])
    elif kind == "blobs":
        lie = BlobRef(page.id, page.stored_size + by, page.plain_size)
        at = Content((), ((0, lie),))
        manifest = crafted.manifest([Record(b"", entry(b"lie", digest(b""), 10), at)])

    async def work(client: Client) -> None:
        with pytest.raises(CvfsError):
            await client.read(b"lie")

    run(world, manifest, work)
    assert kept <= set((world.cache / kind).glob("*/*"))


def test_who_reads_in_order_gets_the_error_of_the_file_that_is_a_lie(world: World, crafted: Crafted) -> None:
    """And not that of the one behind it, which is looked at ahead."""
    pack = crafted.seal(b"aabbccdd")
    claimed = {name: digest(b"other" if name == b"c" else name * 2) for name in (b"a", b"b", b"c", b"d")}
    records = [file(name, pack, content_id, 2, 2 * at) for at, (name, content_id) in enumerate(claimed.items())]

    async def work(client: Client) -> None:
        a, b, c, d = [(await client.lookup(name)).inode for name in claimed]
        await client.read(b"a")
        client.fs._files.clear()
        for inode, data in ((a, b"aa"), (b, b"bb")):
            assert client.fs.read_parts_nowait(inode, 0, 4096) == (data,)
            with pytest.raises(IntegrityError) if inode == b else contextlib.nullcontext():
                client.fs.make_ready(inode)
        with pytest.raises(IntegrityError):
            client.fs.read_parts_nowait(c, 0, 4096)
        assert client.fs.read_parts_nowait(d, 0, 4096) == (b"dd",)

    run(world, crafted.manifest(records), work)


def test_false_chunk_id_is_refused_and_not_cached(world: World, crafted: Crafted) -> None:
    chunk, false = b"a" * 1000, b"b" * 1000
    pack = crafted.seal(false + chunk)
    lie = Location(0, 1000, pack, 0, digest(chunk))
    manifest = crafted.manifest([chunked(b"f", 2000, lie, Location(1000, 1000, pack, 1000, digest(chunk)))])

    async def work(client: Client) -> None:
        assert await client.read(b"f", 1000, 50) == chunk[:50]
        with pytest.raises(IntegrityError):
            await client.read(b"f", 0, 1)

    run(world, manifest, work)
    [stored] = (world.cache / "large").glob("*/*")
    assert stored.read_bytes() == bytes(1000) + chunk


def test_content_id_that_is_the_id_of_a_blob_gives_nothing_else(world: World, crafted: Crafted) -> None:
    """What is in memory under one kind of name is not found under another."""
    pack = crafted.seal(b"x" * 5000)
    good = file(b"good", pack, digest(b"x" * 5000), 5000)
    manifest = crafted.manifest([good, file(b"lie", pack, pack.id, 5000)])

    async def work(client: Client) -> None:
        await client.read(b"good")
        with pytest.raises(IntegrityError):
            await client.read(b"lie")

    run(world, manifest, work)


def test_pack_that_is_a_page_harms_nobody(world: World, crafted: Crafted) -> None:
    location = Location(0, 10, crafted.seal(b"0123456789" * 100), 0, digest(b"0123456789"))
    page = crafted.seal(encode_locations([location]))
    lie = Record(b"", entry(b"lie", digest(b""), 10), Content((), ((0, location.pack),)))
    manifest = crafted.manifest([file(b"page", page, digest(b"no"), 2), lie, chunked(b"ok", 10, location)])

    async def work(client: Client) -> None:
        for name in (b"page", b"lie"):
            with pytest.raises((FormatError, IntegrityError)):
                await client.read(name)
        assert await client.read(b"ok") == b"0123456789"

    run(world, manifest, work)


def test_location_page_that_is_not_what_its_entry_says(world: World, crafted: Crafted) -> None:
    chunk = b"c" * 100
    pack = crafted.seal(chunk)
    beyond = crafted.seal(encode_locations([Location(50, 100, pack, 0, digest(chunk))]))
    manifest = crafted.manifest([Record(b"", entry(b"f", digest(b""), 120), Content((), ((50, beyond),)))])

    async def work(client: Client) -> None:
        with pytest.raises(FormatError):
            await client.read(b"f")

    run(world, manifest, work)
    assert not list((world.cache / "large").glob("*/*"))


@pytest.mark.parametrize("plain_size", [10_000, 16 * MIB])
def test_bomb_is_refused_before_it_goes_off(world: World, crafted: Crafted, plain_size: int) -> None:
    stored = zstandard.ZstdCompressor().compress(bytes(1 << 28))  # 256 MiB, its frame says so
    bomb = crafted.put(stored, BlobRef(digest(stored), len(stored), plain_size))
    small = crafted.seal(b"fine")
    manifest = crafted.manifest([file(b"bomb", bomb, digest(b"?"), 5), file(b"fine", small, digest(b"fine"), 4)])

    async def work(client: Client) -> None:
        with pytest.raises(CvfsError):
            await client.read(b"bomb")
        assert await client.read(b"fine") == b"fine"

    before = _peak_kib()
    run(world, manifest, work)
    assert _peak_kib() - before < 64 << 10


def test_page_that_is_garbage(world: World, crafted: Crafted) -> None:
    ref = crafted.seal(os.urandom(3000))
    manifest = Manifest("liar.example.org", 1, 0, ref, 0, crafted.manifest([]).summary, None)

    async def work(client: Client) -> None:
        with pytest.raises(FormatError):
            await client.lookup(b"x")

    run(world, manifest, work)


def _peak_kib() -> int:
    return int(Path("/proc/self/status").read_text("ascii").split("VmHWM:")[1].split()[0])
