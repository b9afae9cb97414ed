"""Which blobs revisions consist of."""

from collections.abc import Iterator

from cvfs.errors import FormatError, IntegrityError, StoreError
from cvfs.format.pages import Inner, LocationPage, Page, decode_page
from cvfs.model import BlobRef, Manifest
from publisher.repository.history import read_blob
from publisher.store import Store


class ReachableBlobs:
    """The pages and packs of all trees that were added. What two trees share is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pages: set[BlobRef] = set()
        self._packs: set[BlobRef] = set()

    @property
    def packs(self) -> set[BlobRef]:
        return self._packs

    @property
    def blobs(self) -> set[BlobRef]:
        return self._pages | self._packs

    def add(self, manifest: Manifest) -> None:
        """Take in the tree of a revision. Raises StoreError, IntegrityError, FormatError: a page cannot be read."""
        pending = [(manifest.root, manifest.level)]
        while pending:
            ref, level = pending.pop()
            if ref in self._pages:
                continue
            self._pages.add(ref)
            page = decode_page(read_blob(self._store, ref))
            if isinstance(page, Inner):
                if page.level != level:
                    raise FormatError(f"page {ref.id.hex()}: of level {page.level}, not {level}")
                pending += [(child.blob, level - 1) for child in page.children]
            else:
                self._packs.update(_packs(page))
                pending += [(below, 0) for below in _location_pages(page)]


def is_kept(store: Store, manifest: Manifest) -> bool:
    """Whether a revision has its root page: garbage collection takes that first."""
    return store.has_blob(manifest.root)


def check_kept(store: Store, manifest: Manifest) -> None:
    """Raise StoreError unless `is_kept`."""
    if not is_kept(store, manifest):
        raise StoreError(
            f"revision {manifest.revision} is gone: gc has removed it, or its root page is lost (cvfs-publisher log)"
        )


def check_complete(store: Store, manifest: Manifest) -> None:
    """Raise StoreError unless all that a revision consists of is there: garbage collection may have taken it."""
    check_kept(store, manifest)
    reachable = ReachableBlobs(store)
    add_complete(reachable, manifest)
    missing = sum(not store.has_blob(blob) for blob in reachable.blobs)
    if missing:
        raise StoreError(f"revision {manifest.revision} is not complete any more: {missing} of its blobs have gone")


def add_complete(reachable: ReachableBlobs, manifest: Manifest) -> None:
    """As `reachable.add`; the error tells which revision it is that lacks a page."""
    try:
        reachable.add(manifest)
    except (StoreError, IntegrityError) as error:
        raise StoreError(f"revision {manifest.revision} is not complete any more: {error}") from error


def _packs(page: Page) -> Iterator[BlobRef]:
    if isinstance(page, LocationPage):
        yield from (location.pack for location in page.locations)
    elif not isinstance(page, Inner):
        yield from page.packs


def _location_pages(page: Page) -> Iterator[BlobRef]:
    if not isinstance(page, Inner | LocationPage):
        for group in page.groups:
            for content in group.contents:
                if content is not None:
                    yield from (ref for _, ref in content.location_pages)
