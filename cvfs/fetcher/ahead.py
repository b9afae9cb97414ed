"""What is fetched before anyone asks for it.

One pack ahead, and only of who reads packs in their order: that hides the way to a near server, and costs who reads
here and there nothing. Behind the last pack of a leaf comes the first one of the next leaf, and the leaf before it.
More than one pack, for a server that is far away, needs to know how far.
"""

import logging
from collections.abc import Awaitable, Callable

from cvfs.cache.memory import Memory
from cvfs.errors import CvfsError
from cvfs.fetcher.blobs import Blobs
from cvfs.fetcher.pages import Pages
from cvfs.format.pages import Leaf
from cvfs.model import BlobRef, Digest
from cvfs.pieces import Around, InLeaf, Pack, Piece, pieces_in_pack

log = logging.getLogger(__name__)


class ReadAhead:
    """Of one repository. `join` brings a pack, or waits for who does."""

    def __init__(
        self,
        blobs: Blobs,
        pages: Pages,
        packs: Memory[Digest, Pack],
        join: Callable[[Piece, Around], Awaitable[Pack | None]],
    ) -> None:
        self._nursery, self._counters = blobs.nursery, blobs.counters
        self._pages, self._packs, self._join = pages, packs, join
        self._under_way: set[Digest] = set()
        """Of packs that are brought, and of leaves behind which packs are."""
        self.is_on = True

    @property
    def is_busy(self) -> bool:
        return bool(self._under_way)

    def note_first_read(self, pack: Pack, around: Around) -> None:
        """If a pack that is read for the first time follows the one before it, begin to bring the one behind it."""
        if not self.is_on or not (self._has_come(pack) or self._follows(around)):
            return
        following = around.next_pack()
        if following is not None:
            pack_id = following[0].location.pack.id
            if pack_id not in self._under_way and self._packs.get(pack_id) is None:
                self._under_way.add(pack_id)
                self._nursery.start_soon(self._bring, pack_id, *following)
        elif isinstance(around, InLeaf) and around.page.id not in self._under_way:
            self._under_way.add(around.page.id)
            self._nursery.start_soon(self._cross, around)

    def _has_come(self, pack: Pack) -> bool:
        return pack.came_ahead or pack.ref.id in self._under_way

    def _follows(self, around: Around) -> bool:
        """Whether the pack before the one that is read now was read lately: it is still among those in memory."""
        before = around.previous_pack()
        pack = None if before is None else self._packs.get(before.id)
        return pack is not None and pack.was_read

    async def _bring(self, pack_id: Digest, piece: Piece, around: Around) -> None:
        try:
            pack = await self._join(piece, around)
            if pack is not None:
                pack.came_ahead = True
                self._counters.ahead += pack.was_fetched
        except CvfsError as error:
            log.debug("reading ahead: %s", error)  # who needs it will hear of it
        finally:
            self._under_way.discard(pack_id)

    async def _cross(self, around: InLeaf) -> None:
        """Bring the next leaf, and the first pack in it."""
        try:
            first = await self._first_behind(around)
            if first is not None and self._packs.get(first[0].location.pack.id) is None:
                pack_id = first[0].location.pack.id
                self._under_way.add(pack_id)
                await self._bring(pack_id, *first)
        except CvfsError as error:
            log.debug("reading ahead: %s", error)
        finally:
            self._under_way.discard(around.page.id)

    async def _first_behind(self, around: InLeaf) -> tuple[Piece, Around] | None:
        ref: BlobRef | None = self._pages.after(around.page)
        leaf = None if ref is None else await self._pages.page(ref)
        if ref is None or not isinstance(leaf, Leaf):
            return None
        number = int(leaf.packs[:1] == (around.pack,))  # a pack may be of both leaves
        if number == len(leaf.packs):
            return None
        return next(pieces_in_pack(leaf, number)), InLeaf(around.load, ref, leaf.packs[number])
