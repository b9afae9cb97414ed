"""Pins: lists of what is not to be evicted, one file for each path that was pinned.

A list names ids, not paths: whoever evicts asks it for those of one shard, which takes two reads. It is sorted, behind
a table that says where the ids of each shard end; what it is for follows as JSON.
"""

import contextlib
import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cvfs.cache.directory import CacheDirectory, as_cache_error
from cvfs.model import DIGEST_SIZE

log = logging.getLogger(__name__)

_MAGIC = b"cvfs-pin"
_ENDS = struct.Struct("=256I")
_IDS_AT = len(_MAGIC) + _ENDS.size

About = dict[str, Any]
"""What a pin is for: "repository", "url", "path", "revision", "files", "bytes"."""


class Pins:
    """The directory `pins` of the cache. Survives a wipe, so that what comes back is pinned again."""

    def __init__(self, directory: CacheDirectory) -> None:
        self._directory = directory
        self._root = directory.path / "pins"

    def put(self, repository: str, path: bytes, ids: Iterable[bytes], about: About) -> None:
        """Pin `ids` for `path` of `repository`, in place of what was pinned for it before. Raises CacheError."""
        names = sorted(set(ids))
        ends = [0] * 256
        for name in names:
            ends[name[0]] += 1
        for number in range(1, 256):
            ends[number] += ends[number - 1]
        shown = {**about, "repository": repository, "path": os.fsdecode(path)}
        data = _MAGIC + _ENDS.pack(*ends) + b"".join(names) + json.dumps(shown).encode()
        try:
            self._directory.make(os.fsencode(self._root))
            _write_durably(self._root / _file_name(repository, path), data)
        except OSError as error:
            raise as_cache_error(f"cannot write below {self._root}", error) from error

    def remove(self, repository: str, path: bytes) -> bool:
        """Whether the path was pinned. Raises CacheError."""
        try:
            (self._root / _file_name(repository, path)).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise as_cache_error(f"cannot write below {self._root}", error) from error
        return True

    def of_shard(self, number: int) -> set[bytes]:
        """All pinned ids whose first byte is `number`."""
        found: set[bytes] = set()
        for path in self._files():
            with _opened(path) as fd:
                if fd is not None:
                    found.update(_ids_of_shard(fd, number))
        return found

    def all(self) -> list[About]:
        """What each pin is for, by repository and path."""
        found = [about for about in map(_about, self._files()) if about is not None]
        return sorted(found, key=lambda about: (about["repository"], about["path"]))

    def _files(self) -> list[Path]:
        try:
            return [self._root / name for name in os.listdir(self._root) if name.endswith(".pin")]
        except OSError:
            return []


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A pin's file; None if it is gone, or damaged."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        is_whole = os.pread(fd, len(_MAGIC), 0) == _MAGIC and os.fstat(fd).st_size >= _IDS_AT
        if not is_whole:
            log.warning("%s is damaged: it pins nothing", path)
        yield fd if is_whole else None
    finally:
        os.close(fd)


def _ends(fd: int) -> tuple[int, ...]:
    return _ENDS.unpack(os.pread(fd, _ENDS.size, len(_MAGIC)))


def _ids_of_shard(fd: int, number: int) -> Iterator[bytes]:
    ends = (0, *_ends(fd))
    count = max(0, ends[number + 1] - ends[number])
    data = os.pread(fd, count * DIGEST_SIZE, _IDS_AT + ends[number] * DIGEST_SIZE)
    for offset in range(0, len(data), DIGEST_SIZE):
        yield data[offset : offset + DIGEST_SIZE]


def _about(path: Path) -> About | None:
    with _opened(path) as fd:
        if fd is None:
            return None
        start = _IDS_AT + _ends(fd)[-1] * DIGEST_SIZE
        try:
            about: About = json.loads(os.pread(fd, 1 << 16, start))
        except (OSError, ValueError):
            log.warning("%s is damaged", path)
            return None
        return about


def _file_name(repository: str, path: bytes) -> str:
    return hashlib.sha256(repository.encode() + b"\0" + path).hexdigest()[:32] + ".pin"


def _write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".new-{os.urandom(8).hex()}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
