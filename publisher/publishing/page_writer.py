"""Putting pages into a store."""

from cvfs.format.blob import digest, seal
from cvfs.model import BlobRef
from publisher.publishing.report import Counts
from publisher.state.index import Index
from publisher.store import Store


class PageWriter:
    """Puts the plain bytes of pages. One that was put before is neither compressed nor stored again."""

    def __init__(self, store: Store, index: Index, counts: Counts) -> None:
        self._store = store
        self._index = index
        self._counts = counts

    def __call__(self, plain: bytes) -> BlobRef:
        plain_id = digest(plain)
        ref = self._index.find_page(plain_id)
        if ref is None:
            ref, stored = seal(plain)
            if self._store.put_blob(ref, stored):
                self._counts.pages += 1
                self._counts.pages_stored_bytes += ref.stored_size
            self._index.blobs.add(ref)
            self._index.add_page(plain_id, ref)
        return ref
