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
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from cvfs.cache.directory import CacheDirectory, as_cache_error
from cvfs.model import DIGEST_SIZE

log = logging.getLogger(__name__)

_MAGIC = b"cvfs-pin"
_ENDS = struct.Struct("=256I")
_IDS_AT = len(_MAGIC) + _ENDS.size

About = dict[str, Any]
"""What a pin is for: "repository", "url", "path", "revision", "files", "bytes" of these, "disk_bytes" that all of it
takes in the cache (missing in those of older versions)."""


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
        """All pinned ids whose first byte is `number`. A damaged list has none."""
        return set().union(*(_ids_of_shard(path, number) for path in self._files()))

    def among(self, ids: Collection[bytes]) -> set[bytes]:
        """Those of `ids` that are pinned."""
        if not self._files():
            return set()
        pinned = {number: self.of_shard(number) for number in {name[0] for name in ids}}
        return {name for name in ids if name in pinned[name[0]]}

    def all(self) -> list[About]:
        """What each pin is for, by repository and path."""
        found = [about for about in map(_about, self._files()) if about is not None]
        return sorted(found, key=lambda about: (about["repository"], about["path"]))

    def _files(self) -> list[Path]:
        try:
            return [self._root / name for name in os.listdir(self._root) if name.endswith(".pin")]
        except OSError:
            return []


def _ids_of_shard(path: Path, number: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError), path.open("rb") as file:
        ends = (0, *_ends(file))
        file.seek(_IDS_AT + ends[number] * DIGEST_SIZE)
        for _ in range(ends[number], ends[number + 1]):
            yield file.read(DIGEST_SIZE)


def _about(path: Path) -> About | None:
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
        file.seek(_IDS_AT + _ends(file)[-1] * DIGEST_SIZE)
        about: About = json.loads(file.read())
        return about
    log.warning("%s is damaged, it pins nothing: pin anew what it was for", path)
    return None


def _ends(file: BinaryIO) -> tuple[int, ...]:
    """Where the ids of each shard end, in ids; all at 0 if the file is damaged."""
    head = file.read(_IDS_AT)
    if len(head) == _IDS_AT and head.startswith(_MAGIC):
        ends = _ENDS.unpack_from(head, len(_MAGIC))
        is_whole = _IDS_AT + ends[-1] * DIGEST_SIZE <= os.fstat(file.fileno()).st_size
        if is_whole and all(first <= second for first, second in pairwise(ends)):
            return ends
    return (0,) * 256


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
