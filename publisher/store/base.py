"""What a publisher asks of a store."""

from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from cvfs.errors import StoreError
from cvfs.model import BlobRef, Digest
from publisher.locking import Waiting


class HeadMovedError(StoreError):
    """Another publisher made a revision meanwhile."""


class StoredBlob(NamedTuple):
    """A blob as a store lists it: its id, its size as it is, and when it was put there, in seconds since 1970."""

    id: Digest
    size_bytes: int
    stored_s: int


class Store(Protocol):
    """Immutable blobs by id, immutable metadata by name, and one mutable head, the timestamp.

    Methods raise StoreError. All but `lock` may be called from several threads at once.
    """

    @property
    def location(self) -> str:
        """What the user calls it: a path or an address."""

    def has_blob(self, ref: BlobRef) -> bool:
        """Whether the blob is here, in its full size. Its bytes are not looked at."""

    def put_blob(self, ref: BlobRef, stored: bytes) -> bool:
        """Store a blob; it appears whole or not at all. False if it was here already."""

    def get_blob(self, ref: BlobRef) -> bytes:
        """The stored bytes; the caller verifies them."""

    def get_metadata(self, path: str, max_bytes: int) -> bytes:
        """A file of metadata, unverified. Raises StatusError 404 if there is none, StoreError if it is larger."""

    def add_metadata(self, path: str, data: bytes) -> bool:
        """Store a file of metadata durably, whole or not at all. False if another one has this name."""

    def read_head(self) -> bytes:
        """The head as it is now, unverified."""

    def swap_head(self, expected: bytes, new: bytes) -> None:
        """Make `new` the head if it still is `expected`. Raises HeadMovedError if it is not."""

    def sync(self) -> None:
        """Return when all that was put would survive a power failure."""

    def lock(self, waiting: Waiting | None, *, to_write: bool = True) -> AbstractContextManager[None]:
        """Keep other publishers out; ends with the process. If another one has the lock, call `waiting` and wait;
        without `waiting`, raise StoreError. Not `to_write`: where this user may not write, nobody is kept out."""
