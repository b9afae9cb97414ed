"""The places of large objects."""

from collections.abc import Callable
from typing import NamedTuple

from cvfs.errors import PublishError
from cvfs.format.pages import encode_locations
from cvfs.limits import MAX_LOCATIONS
from cvfs.model import BlobRef, Content, Digest, Entry, Location
from publisher.packs.pack import InPack, Pack

_MAX_INLINE = 64
_PER_PAGE = 1024

PutPage = Callable[[bytes], BlobRef]


class Chunk(NamedTuple):
    """Bytes of a large object from `offset` on."""

    offset: int
    data: memoryview
    chunk_id: Digest


class Chunked:
    """The place of a large object: those of its chunks."""

    def __init__(self, put_page: PutPage, keep: Callable[[bytes, Content], None]) -> None:
        self._put_page = put_page
        self._keep = keep
        self._chunks: list[tuple[int, Digest, InPack]] = []
        self._settled = 0
        self.size_bytes = 0
        self._content: Content | None = None

    def add(self, chunk: Chunk, place: InPack) -> None:
        self.size_bytes += len(chunk.data)
        self._chunks.append((chunk.offset, chunk.chunk_id, place))

    @property
    def unfinished(self) -> Pack | None:
        """The first that is. Packs are stored in order, so none before it is looked at again."""
        while self._settled < len(self._chunks):
            pack = self._chunks[self._settled][2].unfinished
            if pack is not None:
                return pack
            self._settled += 1
        return None

    def resolve(self, entry: Entry) -> Content | None:
        if self._content is None and self.unfinished is None:
            self._content = self._make()
            self._keep(entry.content_id, self._content)
            self._chunks.clear()
            self._settled = 0
        return self._content

    def _make(self) -> Content:
        locations = tuple(self._location(*chunk) for chunk in self._chunks)
        if len(locations) <= _MAX_INLINE:
            return Content(locations)
        if len(locations) > MAX_LOCATIONS * _PER_PAGE:
            raise PublishError(f"a file of {len(locations)} chunks is over the limit")
        runs = [locations[i : i + _PER_PAGE] for i in range(0, len(locations), _PER_PAGE)]
        return Content((), tuple((run[0].object_offset, self._put_page(encode_locations(run))) for run in runs))

    def _location(self, offset: int, chunk_id: Digest, place: InPack) -> Location:
        assert place.pack.ref is not None
        return Location(offset, place.length, place.pack.ref, place.offset, chunk_id)
