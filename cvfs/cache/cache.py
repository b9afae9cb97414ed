"""The cache as the fetcher sees it."""

from pathlib import Path

from cvfs.cache.directory import CacheDirectory
from cvfs.cache.files import DigestFiles
from cvfs.cache.index import InodeIndex
from cvfs.cache.large import LargeFiles
from cvfs.cache.locks import BlobLocks
from cvfs.cache.quota import Limits, Quota
from cvfs.model import Digest

NO_LIMITS = Limits()
"""None that were said: those that hold by default."""


class Cache:
    """The parts of one cache directory. Raises ConfigError if the directory cannot be ours (see CacheDirectory)."""

    def __init__(self, path: Path, limits: Limits = NO_LIMITS) -> None:
        self.directory = CacheDirectory(path)
        self.objects = DigestFiles(self.directory, "objects")
        """Plain small objects, by content id."""
        self.blobs = DigestFiles(self.directory, "blobs")
        """Stored pages and manifests, by blob id."""
        self.large = LargeFiles(self.directory)
        self.index = InodeIndex(self.directory)
        self.locks = BlobLocks(self.directory)
        self.quota = Quota(self.directory, limits, self.index.pages)

    def store_blob(self, name: Digest, stored: bytes) -> None:
        """Put a verified page or manifest there, within the limit. Raises CacheError."""
        with self.quota.room(metadata=[len(stored)]) as room:
            room.fill(len(stored), lambda: self.blobs.store(name, stored))

    def close(self) -> None:
        self.index.close()
        self.locks.close()
