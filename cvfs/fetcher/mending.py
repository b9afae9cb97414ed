"""Inode numbers that the index has lost, found again.

The kernel asks for what it was told of by number, and the index knows each number that was given out. Where it does
not, its file was damaged: then all leaves that it lists are put into it once more, out of the cache.
"""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

from cvfs.errors import CvfsError
from cvfs.fetcher.blobs import Blobs
from cvfs.fetcher.pages import Pages
from cvfs.format.pages import Leaf
from cvfs.inodes import Numbering
from cvfs.missing import Missing

log = logging.getLogger(__name__)

_REST_S: Final = 60.0
_REST: Final = 50
"""After all leaves were put there, for this time and for this times what it took, what is not found is taken to be a
number that nobody gave out. To put a thousand files there takes 20 ms."""


class NumberLost(Missing):
    """The index does not know a number: have it mended, then ask again."""

    def __init__(self, inode: int, menders: "Sequence[Mender]") -> None:
        super().__init__(f"inode number {inode:#x}")
        self._menders = menders

    async def bring(self) -> None:
        for mender in self._menders:
            await mender.mend()


class Mender:
    """Of the numbers of one repository."""

    def __init__(self, blobs: Blobs, pages: Pages, numbering: Numbering) -> None:
        self._blobs, self._pages, self._numbering = blobs, pages, numbering
        self._resting_until = -math.inf

    @property
    def is_of_use(self) -> bool:
        """Whether to mend the index may find a number that is not in it."""
        return time.monotonic() >= self._resting_until

    async def mend(self) -> None:
        """Put all leaves there that are listed there, and in memory or in the cache. A disk that fails is no error."""
        await self._blobs.flights.join(("mend", self._numbering.seed), self._mend)

    async def _mend(self) -> None:
        index, start = self._blobs.cache.index, time.monotonic()
        with self._complaining():
            leaves = await self._blobs.in_thread(index.leaves_of, self._numbering.seed)
            log.warning("the inode index lacks a number: putting %d leaves there once more", len(leaves))
            for ref in leaves:
                with self._complaining():
                    page = await self._pages.cached(ref)
                    if isinstance(page, Leaf):
                        await self._blobs.in_thread(partial(index.adopt, self._numbering, ref, page, anew=True))
        end = time.monotonic()
        self._resting_until = end + max(_REST_S, _REST * (end - start))

    @contextlib.contextmanager
    def _complaining(self) -> Iterator[None]:
        """What cannot be mended is told of, and the rest is."""
        try:
            yield
        except CvfsError as error:
            log.warning("the inode index cannot be mended: %s", error)
