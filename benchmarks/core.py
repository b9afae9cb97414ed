"""How much of the time is not the engine's? The same walk and reads asked of `FileSystem` directly, without FUSE.

What a mount takes beyond these figures is the engine's, the kernel's and the asking program's.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from benchmarks import trees
from benchmarks.frame import Context, Report, drop_caches
from benchmarks.sandbox import Sandbox, sandbox
from cvfs.config import Settings
from cvfs.filesystem import FileSystem, Item
from cvfs.inodes import ROOT_INODE
from cvfs.missing import Missing
from cvfs.mount.client import open_repository

REQUEST_BYTES = 128 << 10
"""What the kernel asks for at once."""

WHO = "the core alone"

Action = Callable[[FileSystem], Awaitable[None]]


def measure(context: Context) -> Report:
    report = Report("The core without FUSE: what is not the engine's time")
    tree = trees.software(context)
    with sandbox(context.work) as box:
        box.init()
        box.publish(tree)
        with box.serve() as url:
            rounds = [trio.run(_round, context, box, url) for _ in range(context.runs)]
    for task in rounds[0]:
        report.add(task, WHO, "s", [round_[task][0] for round_ in rounds])
        report.add(task, f"{WHO}, CPU of its process", "s", [round_[task][1] for round_ in rounds])
    count = _count_entries(tree)
    report.notes.append(f"{count:,} entries; divide by it to have the cost of one. Walk: list and look up each entry.")
    report.notes.append("Read: in the order of a walk, one file after the other, in requests of 128 KiB.")
    return report


async def _round(context: Context, box: Sandbox, url: str) -> dict[str, tuple[float, float]]:
    """By task: seconds, and CPU seconds of this process, its threads included."""
    found: dict[str, tuple[float, float]] = {}
    for task, action in (("walk", _walk), ("read", _walk_and_read)):
        box.forget_cache()
        async with _opened(box, url) as filesystem:
            found[f"{task}, cold: over loopback"] = await _timed(action, filesystem)
        async with _opened(box, url) as filesystem:
            found[f"{task}, local: nothing in memory"] = await _timed(action, filesystem)
            found[f"{task}, once more"] = await _timed(action, filesystem)
        if context.can_drop_caches:
            async with _opened(box, url) as filesystem:
                drop_caches()
                found[f"{task}, dropped: the local cache on the disk"] = await _timed(action, filesystem)
    return found


@asynccontextmanager
async def _opened(box: Sandbox, url: str) -> AsyncIterator[FileSystem]:
    directory = box.directory
    settings = Settings(
        cache=directory / "cache",
        state=directory / "state",
        logs=directory / "log",
        runtime=directory / "run",
        root=directory / "keys/root.json",
    )
    async with open_repository(url, settings) as client:
        yield FileSystem(client.repository)


async def _timed(action: Action, filesystem: FileSystem) -> tuple[float, float]:
    started, cpu = time.perf_counter(), time.process_time()
    await action(filesystem)
    return time.perf_counter() - started, time.process_time() - cpu


async def _walk(filesystem: FileSystem) -> None:
    async for parent, item in _items(filesystem):
        await filesystem.bring(partial(filesystem.lookup_nowait, parent, item.name))


async def _walk_and_read(filesystem: FileSystem) -> None:
    async for _, item in _items(filesystem):
        if item.node.entry.is_regular:
            for offset in range(0, item.node.size, REQUEST_BYTES):
                await _read(filesystem, item.node.inode, offset)


async def _read(filesystem: FileSystem, inode: int, offset: int) -> None:
    """As an engine does: at once where that needs no wait."""
    parts = None
    with contextlib.suppress(Missing):
        parts = filesystem.read_parts_nowait(inode, offset, REQUEST_BYTES)
    if parts is None:
        file = await filesystem.bring(partial(filesystem.file_nowait, inode))
        await file.read_parts(offset, REQUEST_BYTES)


async def _items(filesystem: FileSystem) -> AsyncIterator[tuple[int, Item]]:
    """Everything below the root, with its directory's inode; depth first, as find and tar go."""
    pending = [ROOT_INODE]
    while pending:
        directory, cookie = pending.pop(), 0
        below = []
        while items := await filesystem.bring(partial(filesystem.listing_nowait, directory, cookie)):
            for item in items:
                if item.name not in (b".", b".."):
                    yield directory, item
                    if item.node.entry.is_directory:
                        below.append(item.node.inode)
            cookie = items[-1].cookie
        pending += reversed(below)


def _count_entries(tree: Path) -> int:
    return sum(1 for _ in tree.rglob("*"))
