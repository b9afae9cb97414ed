"""The cache as the fetcher sees it."""

from pathlib import Path

from cvfs.cache.directory import CacheDirectory
from cvfs.cache.files import DigestFiles
from cvfs.cache.index import InodeIndex
from cvfs.cache.large import LargeFiles
from cvfs.cache.locks import BlobLocks


class Cache:
    """The parts of one cache directory. Raises ConfigError if the directory cannot be ours (see CacheDirectory)."""

    def __init__(self, path: Path) -> None:
        self.directory = CacheDirectory(path)
        self.objects = DigestFiles(self.directory, "objects")
        """Plain small objects, by content id."""
        self.blobs = DigestFiles(self.directory, "blobs")
        """Stored pages and manifests, by blob id."""
        self.large = LargeFiles(self.directory)
        self.index = InodeIndex(self.directory)
        self.locks = BlobLocks(self.directory)

    def close(self) -> None:
        self.index.close()
        self.locks.close()
