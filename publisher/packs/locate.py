"""Where a content is stored already, as far as this host knows."""

from cvfs.format.pages import LocationPage
from cvfs.format.tree import Load
from cvfs.model import NO_CONTENT, Content, Entry, Location
from publisher.packs.pack import MAX_SMALL_BYTES
from publisher.state.index import Index


def locate(index: Index, load: Load, entry: Entry) -> Content | None:
    """Where the content of an entry is stored; None if it has to be read to know."""
    if not entry.content_id or not entry.size:
        return NO_CONTENT
    if entry.size > MAX_SMALL_BYTES:
        return _locate_large(index, load, entry)
    piece = index.objects.find(entry.content_id)
    return None if piece is None else Content((Location(0, entry.size, piece.pack, piece.offset, b""),))


def _locate_large(index: Index, load: Load, entry: Entry) -> Content | None:
    content = index.find_large(entry.content_id)
    for _, ref in content.location_pages if content is not None else ():
        page = load(ref)
        if not isinstance(page, LocationPage):
            return None
        if not all(index.blobs.is_present(location.pack) for location in page.locations):
            return None
    return content
