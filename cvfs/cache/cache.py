"""The cache as the fetcher sees it."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

from cvfs.cache.directory import CacheDirectory
from cvfs.cache.files import DigestFiles
from cvfs.cache.index import InodeIndex
from cvfs.cache.large import LargeFiles
from cvfs.cache.locks import BlobLocks
from cvfs.cache.opened import OpenFiles, open_at
from cvfs.cache.quota import Quota
from cvfs.cache.space import Limits
from cvfs.model import Digest

NO_LIMITS = Limits()
"""None that were said: those that hold by default."""


class Cache:
    """The parts of one cache directory. Raises ConfigError if the directory cannot be ours (see CacheDirectory)."""

    def __init__(self, path: Path, limits: Limits = NO_LIMITS) -> None:
        self.directory = CacheDirectory(path)
        self._open_files: OpenFiles | None = None
        self.quota = Quota(self.directory, limits, self._needed)
        self.index = InodeIndex(self.directory, self.quota.evictor.evict)
        dropped = self.quota.evictor.note_dropped
        self.objects = DigestFiles(self.directory, "objects", partial(dropped, of_metadata=False))
        """Plain small objects, by content id."""
        self.packs = DigestFiles(self.directory, "packs", partial(dropped, of_metadata=False))
        """Stored packs of small objects, by blob id, until each of their objects is a plain file."""
        self.blobs = DigestFiles(self.directory, "blobs", partial(dropped, of_metadata=True))
        """Stored pages and manifests, by blob id."""
        self.large = LargeFiles(self.directory)
        self.locks = BlobLocks(self.directory)
        self._open_files = OpenFiles(self.index.find, partial(open_at, self.blobs))

    def store_blob(self, name: Digest, stored: bytes) -> None:
        """Put a verified page or manifest there, within the limit. Raises CacheError."""
        with self.quota.reserve(metadata=[len(stored)]) as reservation:
            reservation.fill(len(stored), lambda: self.blobs.store(name, stored))

    def store_pack(self, name: Digest, stored: bytes) -> None:
        """Put a verified pack there, within the limit, unless it is there. Raises CacheError."""
        if self.packs.stored_bytes(name) == len(stored):
            return
        with self.quota.reserve([len(stored)]) as reservation:
            reservation.fill(len(stored), lambda: self.packs.store(name, stored))

    def _needed(self, of_metadata: bool) -> Collection[bytes]:
        """What must not be evicted: pages that the index names, content that users have open. The index itself comes
        after the quota: it has room made."""
        if self._open_files is None:
            return ()
        opened = self._open_files.ids(self.quota.use().limit_bytes)
        return opened.union(self.index.pages()) if of_metadata else opened

    def close(self) -> None:
        self.index.close()
        self.locks.close()
