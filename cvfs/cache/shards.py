"""What is in the cache, file by file. A shard is what has the same first byte in its name: names are hashes, so each of
the 256 is a fair sample of all."""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cvfs.cache.ledger import KINDS
from cvfs.model import DIGEST_SIZE, Digest

SHARDS = 256
DATA = ("objects", "large", "packs")
METADATA = ("blobs",)
BLOCK_BYTES = 512
"""What st_blocks counts in, whatever the file system's own blocks are."""


class CachedFile(NamedTuple):
    """A file of the cache: `disk_bytes` it takes, of `size_bytes`; `used_s` when it was last used."""

    path: bytes
    name: Digest
    size_bytes: int
    disk_bytes: int
    used_s: float


def list_shard(cache: Path, kind: str, number: int) -> Iterator[CachedFile]:
    """The files of one kind in a shard. What else there is, and what vanishes meanwhile, is left out."""
    first = b"%02x" % number
    with contextlib.suppress(OSError), os.scandir(b"%s/%s/%s" % (os.fsencode(cache), kind.encode(), first)) as entries:
        for entry in entries:
            found = _cached_file(entry, first)
            if found is not None:
                yield found


def list_all(cache: Path, kind: str) -> Iterator[CachedFile]:
    """All files of one kind."""
    for number in range(SHARDS):
        yield from list_shard(cache, kind, number)


def disk_bytes(files: Iterable[CachedFile]) -> int:
    return sum(file.disk_bytes for file in files)


def count(cache: Path) -> tuple[int, int]:
    """The bytes that data and metadata take on the disk, what is unfinished included."""
    sums = {kind: disk_bytes(list_all(cache, kind)) + file_bytes(cache / kind) for kind in KINDS}
    return sum(sums[kind] for kind in DATA), sum(sums[kind] for kind in METADATA)


def file_bytes(directory: Path) -> int:
    """What the files in `directory`, not below it, take on the disk."""
    found = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                found += status.st_blocks * BLOCK_BYTES if stat.S_ISREG(status.st_mode) else 0
    return found


def _cached_file(entry: "os.DirEntry[bytes]", first: bytes) -> CachedFile | None:
    try:
        name = bytes.fromhex((first + entry.name).decode("ascii"))
        status = entry.stat(follow_symlinks=False)
    except (ValueError, OSError):
        return None
    if len(name) != DIGEST_SIZE or not stat.S_ISREG(status.st_mode):
        return None
    return CachedFile(entry.path, Digest(name), status.st_size, status.st_blocks * BLOCK_BYTES, status.st_mtime)
