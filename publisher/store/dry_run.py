"""A store that only looks as if it were written to."""

from contextlib import AbstractContextManager

from cvfs.model import BlobRef
from publisher.locking import Waiting
from publisher.store.base import Store


class DryRunStore:
    """Reads go to `store`, nothing else does. What is put can be read back."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._put: dict[BlobRef, bytes] = {}
        self.location = store.location

    def has_blob(self, ref: BlobRef) -> bool:
        return ref in self._put or self._store.has_blob(ref)

    def put_blob(self, ref: BlobRef, stored: bytes) -> bool:
        if self.has_blob(ref):
            return False
        self._put[ref] = stored
        return True

    def get_blob(self, ref: BlobRef) -> bytes:
        stored = self._put.get(ref)
        return self._store.get_blob(ref) if stored is None else stored

    def get_metadata(self, path: str, max_bytes: int) -> bytes:
        return self._store.get_metadata(path, max_bytes)

    def add_metadata(self, path: str, data: bytes) -> bool:
        """Nothing becomes visible."""
        return True

    def read_head(self) -> bytes:
        return self._store.read_head()

    def swap_head(self, expected: bytes, new: bytes) -> None:
        """Nothing becomes visible."""

    def sync(self) -> None:
        """There is nothing to keep."""

    def lock(self, waiting: Waiting | None, *, to_write: bool = False) -> AbstractContextManager[None]:
        return self._store.lock(waiting, to_write=to_write)
