"""Disks that fill up, are read-only, or whose locks are held by the dead and the stopped: reads go on."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from cvfs.fetcher import keeping
from tests.cache.disks import fill, needs_root, remount, small_disk
from tests.core.test_fetcher import ALL, LARGE
from tests.core.world import Client, World, no_server, until
from tests.publisher.stores import environment

pytestmark = pytest.mark.usefixtures("host_memory")

NAMES = [os.fsencode(name) for name in ALL]
VALUES = list(ALL.values())


@pytest.fixture
def host_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands for the memory of the host: nothing is left in it."""
    (tmp_path / "memory").mkdir()
    monkeypatch.setattr("cvfs.cache.index_files.MEMORY", tmp_path / "memory")


async def read_all(client: Client) -> None:
    for name, value in zip(NAMES, VALUES, strict=True):
        assert await client.read(name) == value


@needs_root
@pytest.mark.parametrize("size", ["64k", "1200k", "4m"])
def test_full_disk_degrades_and_recovers(
    world: World, size: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_REST_S", 0.0)
    world.publish(ALL)

    async def work(client: Client) -> None:
        fill(disk)
        caplog.clear()
        await read_all(client)
        await read_all(client)
        await until(lambda: client.fetcher.counters.uncached > 1)
        warnings = [record for record in caplog.records if "serving uncached" in record.message]
        assert len(warnings) == 1, "once a minute"
        assert warnings[0].levelno == logging.WARNING
        fetched = client.fetcher.counters.fetched_blobs
        remount(disk, "size=64m")
        with trio.fail_after(20):  # the next read of what is only in memory stores it
            while not list((disk / "objects").glob("*/*")):
                await client.read(b"d0/f001")
                await trio.sleep(0.01)
        assert client.fetcher.counters.fetched_blobs == fetched

    with small_disk(world.top / "disk", size) as disk:
        world.run(work, cache=disk)
        assert not list(disk.glob("objects/.new-*"))
        with no_server(world):
            world.read(cache=disk)


@needs_root
def test_full_disk_from_the_start(world: World) -> None:
    world.publish(ALL)
    with small_disk(world.top / "disk", "64k") as disk:
        (disk / "CVFS-CACHE").write_text("1")
        fill(disk)
        world.run(read_all, cache=disk)


@needs_root
def test_read_only_cache_reads_and_is_written_again_once_it_can(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_REST_S", 0.0)
    world.publish(ALL)

    async def work(client: Client) -> None:
        await read_all(client)
        await until(lambda: client.fetcher.counters.uncached)
        remount(disk, "rw")
        await read_all(client)
        await until(lambda: len(list((disk / "objects").glob("*/*"))) >= len(ALL) - 1)

    with small_disk(world.top / "disk", "64m") as disk:
        world.read(b"d0/f001", cache=disk)
        for kind in ("packs", "blobs"):
            for path in (disk / kind).glob("*/*"):
                path.unlink()
        remount(disk, "ro")
        world.run(work, cache=disk)


@needs_root
def test_read_only_cache_still_serves_what_it_has(world: World) -> None:
    world.publish(ALL)
    with small_disk(world.top / "disk", "64m") as disk:
        world.run(read_all, cache=disk)
        remount(disk, "ro")
        with no_server(world):
            world.run(read_all, cache=disk)
        path = next((disk / "packs").glob("*/*"))
        remount(disk, "rw")
        path.write_bytes(b"altered")
        remount(disk, "ro")
        world.run(read_all, cache=disk)  # it cannot be dropped, and is not served


_HOLD = """
import sys
from pathlib import Path
from cvfs.cache.directory import CacheDirectory
from cvfs.cache.locks import BlobLocks
locks = BlobLocks(CacheDirectory(Path(sys.argv[1])))
held = [locks.try_lock(bytes.fromhex(blob)) for blob in sys.argv[2:]]
print(all(held), flush=True)
sys.stdin.readline()
"""


def lock_everything(world: World) -> "subprocess.Popen[str]":
    """A process that holds the lock of every blob, as if it were fetching them."""
    blobs = [name.removeprefix("data/").replace("/", "") for name in world.store.blobs()]
    line = [sys.executable, "-c", _HOLD, str(world.cache), *blobs]
    process = subprocess.Popen(line, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "True\n"
    return process


def test_waiter_goes_on_at_once_when_the_holder_is_killed(world: World) -> None:
    world.publish(ALL)

    async def work(client: Client) -> float:
        holder = lock_everything(world)
        async with trio.open_nursery() as nursery:
            read = []

            async def reader() -> None:
                read.append(await client.read(b"large"))

            nursery.start_soon(reader)
            await trio.sleep(0.3)
            assert not read
            assert not world.data_requests()
            os.kill(holder.pid, signal.SIGKILL)
            holder.communicate()
            start = time.monotonic()
        assert read == [LARGE]
        return time.monotonic() - start

    assert world.run(work) < 1.5


def test_holder_that_is_stopped_is_not_waited_for_beyond_the_deadline(world: World) -> None:
    world.publish(ALL)

    async def work(client: Client) -> None:
        holder = lock_everything(world)
        start = time.monotonic()
        assert await client.read(b"d0/f001") == ALL["d0/f001"]
        assert time.monotonic() - start < 4  # a page and a pack, half a deadline each
        holder.communicate("end\n")

    world.run(work, deadline_s=2)


def test_index_that_another_process_holds_is_not_waited_for_forever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvfs.cache.index_files._LOCK_DEADLINE_S", 0.3)
    world.publish(ALL)
    world.read(b"d0/f001")
    [leaves] = Path(world.cache / "index").glob("*/pages")
    world.publish({**ALL, "new": b"new"})

    async def work(client: Client) -> None:
        with hold() as holder:
            assert holder.stdout
            assert holder.stdout.readline() == "held\n"
            assert await client.read(b"new") == b"new"
            inode = (await client.lookup(b"d0/f001")).inode
            assert client.fs.getattr_nowait(inode).inode == inode
            holder.communicate("end\n")

    def hold() -> "subprocess.Popen[str]":
        line = ["flock", leaves, "sh", "-c", "echo held; read x"]
        return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    world.run(work)
