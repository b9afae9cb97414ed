"""Learning from a revision's pages where contents are: what a lost index is rebuilt from."""

from collections.abc import Iterator

from cvfs.errors import CvfsError
from cvfs.format.pages import LocationPage
from cvfs.format.tree import Load, Tree, diff
from cvfs.model import Content, Entry, Location, Record
from publisher.state.index import Index
from publisher.state.pieces import Piece


def update_index(index: Index, tree: Tree, load: Load) -> None:
    """Make `index` know the contents of `tree`; only what differs from the tree that it knows already is looked at."""
    if index.covered == (tree.root, tree.level):
        return
    for record in _news(index, tree, load):
        if record.entry.is_regular and record.entry.size:
            _learn_content(index, load, record.entry, record.content)
    index.set_covered(tree.root, tree.level)


def _news(index: Index, tree: Tree, load: Load) -> Iterator[Record]:
    covered = index.covered
    if covered is not None:
        try:
            load(covered[0])
        except CvfsError:
            covered = None  # Of another store that stood here, or collected as garbage.
    if covered is None:
        yield from tree.records()
        return
    for _, new in diff(Tree(*covered, load), tree, load):
        if new is not None:
            yield new


def _learn_content(index: Index, load: Load, entry: Entry, content: Content) -> None:
    locations = content.locations
    if len(locations) == 1 and not locations[0].chunk_id:
        whole = locations[0]
        index.objects.add(entry.content_id, Piece(whole.pack, whole.pack_offset, whole.length))
        return
    for _, ref in content.location_pages:
        page = load(ref)
        if isinstance(page, LocationPage):
            _learn_chunks(index, page.locations)
    _learn_chunks(index, locations)
    index.add_large(entry.content_id, content)


def _learn_chunks(index: Index, locations: tuple[Location, ...]) -> None:
    for location in locations:
        index.chunks.add(location.chunk_id, Piece(location.pack, location.pack_offset, location.length))
