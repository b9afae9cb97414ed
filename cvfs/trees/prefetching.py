"""A tree brought into the cache before it is used."""

from collections.abc import Iterable
from typing import NamedTuple

import trio

from cvfs.errors import CvfsError
from cvfs.fetcher import Fetcher
from cvfs.file import File
from cvfs.flights import Room
from cvfs.format.tree.lookup import Found
from cvfs.repository import Repository
from cvfs.trees.tally import Tally
from cvfs.trees.walk import list_tree

_BLOCK_BYTES = 4 << 20
_AHEAD_BYTES = 32 << 20
"""Of files that are read at the same time: enough for all connections to have a pack each."""

_FILE_BYTES = 32 << 10
"""What a file counts for beside its bytes, so that there are never more than a thousand under way."""


class Extent(NamedTuple):
    """How much a tree is: regular files, and their bytes."""

    files: int
    size_bytes: int


async def measure(repository: Repository, top: Found) -> Extent:
    """The extent of what is at `top` and below. Its metadata is in the cache afterwards."""
    files = size_bytes = 0
    async for found in list_tree(repository, top):
        if found.entry.is_regular:
            files += 1
            size_bytes += found.entry.size
    return Extent(files, size_bytes)


class Stock(NamedTuple):
    """How much of some trees the cache has: of `files`, `lacking_files` are not whole in it, and lack `lacking_bytes`.

    What there is takes at least `disk_bytes` there, if it is brought as it comes: the bytes of large files, and packs.
    """

    files: int
    size_bytes: int
    lacking_files: int
    lacking_bytes: int
    disk_bytes: int


async def take_stock(repository: Repository, fetcher: Fetcher, tops: Iterable[Found]) -> Stock:
    """What the cache has of what is at `tops` and below; metadata is not counted, but is in the cache afterwards.
    Nothing is verified. Raises what reading metadata raises."""
    await fetcher.wait_until_stored()
    files = size_bytes = lacking_files = lacking_bytes = 0
    sizes: dict[bytes, int] = {}
    for top in tops:
        async for found in list_tree(repository, top):
            if found.entry.is_regular:
                lacking = await _lacking(File(found, fetcher), sizes)
                files, size_bytes = files + 1, size_bytes + found.entry.size
                lacking_files, lacking_bytes = lacking_files + (lacking > 0), lacking_bytes + lacking
    return Stock(files, size_bytes, lacking_files, lacking_bytes, sum(sizes.values()))


async def _lacking(file: File, sizes: dict[bytes, int]) -> int:
    """How many bytes of a file the cache lacks; what `sizes` is told takes space there, each large file and pack once.

    A small file that is there may be a file by itself, for which nothing is told.
    """
    lacking = listed = 0
    async for name, at, is_there in file.parts_in_cache():
        lacking += 0 if is_there else at.length
        if at.chunk_id:
            listed += at.length
            sizes[name] = listed
        elif not is_there:
            sizes[at.pack.id] = at.pack.stored_size
    return lacking


class Prefetcher:
    """Reads all files of a tree in parallel, so that the cache has them.

    What is in the cache already is verified there and asks no server for anything: an interrupted prefetch goes on
    where it was. What cannot be had goes into the tally.
    """

    def __init__(self, repository: Repository, fetcher: Fetcher, tally: Tally) -> None:
        self._repository, self._fetcher, self._tally = repository, fetcher, tally
        self._room = Room(_AHEAD_BYTES)
        fetcher.bring_only_what_is_asked()

    async def bring(self, top: Found) -> None:
        """Return when everything at `top` and below was tried. Raises what reading metadata raises."""
        async with trio.open_nursery() as nursery:
            async for found in list_tree(self._repository, top):
                if found.entry.is_regular:
                    await self._begin(nursery, found)

    async def _begin(self, nursery: trio.Nursery, found: Found) -> None:
        """Read a file block by block; each block has a task of its own, a large file thus many."""
        size = found.entry.size
        reading = _Reading(found.record.path, File(found, self._fetcher), max(1, -(-size // _BLOCK_BYTES)))
        for offset in range(0, max(size, 1), _BLOCK_BYTES):
            length = min(_BLOCK_BYTES, size - offset)
            await self._room.take(length + _FILE_BYTES)
            nursery.start_soon(self._read, reading, offset, length)

    async def _read(self, reading: "_Reading", offset: int, length: int) -> None:
        try:
            if not reading.failed:
                await reading.file.read(offset, length)
                self._tally.add(0, length)
        except CvfsError as error:
            if not reading.failed:
                self._tally.fail(reading.path, error)
            reading.failed = True
        finally:
            self._room.give_back(length + _FILE_BYTES)
        reading.blocks -= 1
        if not (reading.blocks or reading.failed):
            self._tally.add(1, 0)


class _Reading:
    """A file that is being read, and how many of its blocks are still to come."""

    __slots__ = ("blocks", "failed", "file", "path")

    def __init__(self, path: bytes, file: File, blocks: int) -> None:
        self.path, self.file, self.blocks, self.failed = path, file, blocks, False
