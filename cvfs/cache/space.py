"""What the cache may take: the limit that was set, and the disk that it is on, which others use as well."""

import os
import time
from typing import NamedTuple

from cvfs.cache.directory import CacheDirectory, as_cache_error
from cvfs.errors import ConfigError

DEFAULT_LIMIT_BYTES = 20_000_000_000
DEFAULT_SHARE = 0.8
"""Of what would be free without the cache, if that is less."""

LEAST_LIMIT_BYTES = 4_000_000
"""What a limit must be for anything to be cached: the inode index begins with 1.1 MB, and of the rest a quarter is for
pages; what is left has room for one batch of small files, or the largest pack of them, of 2 MiB. A large file's largest
chunks, of 4 MiB, fit in 7 MB."""

_METADATA_PART = 4
"""The limit divided by this is what pages may take before unneeded ones are evicted. Of a whole repository pages are
one per cent."""

_INDEX_S = 10.0
_MAX_BLOCK_BYTES = 64 << 10


class Limits(NamedTuple):
    """Settings: `cache_limit` in bytes or as a share of the disk (None: the default), `keep_free` likewise."""

    cache_limit: int | float | None = None
    keep_free: int | float = 0.05

    def kept_free(self, size: int) -> int:
        """What is left to others of a disk of `size` bytes."""
        return _part(self.keep_free, size)

    def check(self) -> "Limits":
        """Themselves. Raises ConfigError: nothing could be kept within them."""
        said = self.cache_limit
        if isinstance(said, int) and said < LEAST_LIMIT_BYTES:
            what = f"a cache_limit of {said:,} bytes is too small to keep anything"
            raise ConfigError(f"{what}: make it {LEAST_LIMIT_BYTES // 1_000_000} MB or more")
        return self


class Space(NamedTuple):
    """The disk that the cache is on, and what the cache may take of it, in bytes.

    `limit` is for objects, large files and pages, so that they and the inode index are within what was set.
    """

    size: int
    free: int
    limit: int
    keep_free: int

    @property
    def metadata_limit(self) -> int:
        return self.limit // _METADATA_PART


class Disk:
    """The disk of one cache directory. From any thread. Raises CacheError if it fails."""

    def __init__(self, directory: CacheDirectory, limits: Limits) -> None:
        self._directory, self._limits = directory, limits
        self._block: int | None = None
        self._index = (0, 0.0)

    def space(self) -> Space:
        """As it is now."""
        found = self._statvfs()
        size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        said = self._limits.cache_limit
        limit = DEFAULT_LIMIT_BYTES if said is None else _part(said, size)
        return Space(size, free, max(0, limit - self._index_bytes()), self._limits.kept_free(size))

    def limit_with(self, space: Space, used: int) -> int:
        """The limit of a cache that has `used` bytes: by default a share of what would be free without it."""
        if self._limits.cache_limit is None:
            return min(space.limit, int(DEFAULT_SHARE * (space.free + used)))
        return space.limit

    def lack(self, space: Space, used: int, more: int = 0) -> int:
        """By how much less than it should be free would be if the `used` bytes of the cache became so many more."""
        lack = space.keep_free + more - space.free
        if self._limits.cache_limit is None:
            lack = max(lack, int(used + more - DEFAULT_SHARE * (space.free + used)))
        return lack

    def on_disk(self, size: int) -> int:
        """What a file of `size` bytes takes."""
        if self._block is None:
            self._block = min(max(self._statvfs().f_frsize, 512), _MAX_BLOCK_BYTES)
        return -(-size // self._block) * self._block

    def _index_bytes(self) -> int:
        """What the inode index takes, looked up now and then: it grows in large steps."""
        size, until = self._index
        if time.monotonic() >= until:
            from cvfs.cache.shards import file_bytes

            size = sum(map(file_bytes, (self._directory.path / "index").glob("*")))
            self._index = size, time.monotonic() + _INDEX_S
        return size

    def _statvfs(self) -> os.statvfs_result:
        try:
            try:
                return os.statvfs(self._directory.path)
            except FileNotFoundError:
                self._directory.make(os.fsencode(self._directory.path))
                return os.statvfs(self._directory.path)
        except OSError as error:
            raise as_cache_error(f"cannot use the cache {self._directory.path}", error) from error


def _part(said: int | float, size: int) -> int:
    """A size, or a share of the disk."""
    return int(said * size) if isinstance(said, float) else said
