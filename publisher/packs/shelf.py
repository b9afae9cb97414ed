"""Packs filled one after another, with what is not stored yet."""

from collections.abc import Callable

from cvfs.model import BlobRef, Digest
from publisher.packs.pack import MAX_SPAN, InPack, Pack
from publisher.state.pieces import Piece, Pieces


class Packer:
    """Fills one pack after another. `submit` is given each full one."""

    def __init__(self, full_bytes: int, max_bytes: int, submit: Callable[[Pack], None]) -> None:
        self._full_bytes = full_bytes
        self._max_bytes = max_bytes
        self._submit = submit
        self._pack: Pack | None = None

    def add(self, content_id: Digest, data: bytes | memoryview, number: int) -> InPack:
        """The place of `data`, which belongs to path number `number`: what goes where depends on nothing else."""
        self.cut_before(number)
        pack = self._pack
        if pack is not None and pack.size_bytes + len(data) > self._max_bytes:
            self.cut()
            pack = None
        if pack is None:
            pack = self._pack = Pack(number)
        place = pack.add(content_id, data)
        if pack.size_bytes >= self._full_bytes:
            self.cut()
        return place

    def began_before(self, number: int) -> bool:
        return self._pack is not None and self._pack.number <= number

    def cut_before(self, number: int) -> None:
        """Cut if the open pack began too many paths before path number `number`."""
        if self.began_before(number - MAX_SPAN):
            self.cut()

    def cut(self) -> None:
        if self._pack is not None:
            pack, self._pack = self._pack, None
            self._submit(pack)


class Shelf:
    """Objects, or chunks: what is stored, what is about to be, and the pack that is being filled with what is new."""

    def __init__(self, pieces: Pieces, packer: Packer) -> None:
        self._pieces = pieces
        self._pending: dict[Digest, InPack] = {}
        self.packer = packer

    def place(self, content_id: Digest, data: bytes | memoryview, number: int) -> tuple["InPack", bool]:
        """Where `data` is or will be, and whether it is new. `number` is that of the path it belongs to."""
        place = self._pending.get(content_id)
        if place is not None:
            return place, False
        piece = self._pieces.find(content_id)
        if piece is not None:
            return InPack.stored(piece), False
        self._pending[content_id] = place = self.packer.add(content_id, data, number)
        return place, True

    def settle(self, pack: Pack, ref: BlobRef) -> None:
        """Take note that one of the packs has been stored."""
        for content_id, offset, length in pack.members:
            del self._pending[content_id]
            self._pieces.add(content_id, Piece(ref, offset, length))
        pack.members = []
