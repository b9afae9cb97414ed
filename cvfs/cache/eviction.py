"""Which files go when room is needed: of a fair sample, those that were used least recently.

The whole cache is never looked through for that: a shard or a few are a sample, of which at most a quarter goes before
the next is taken.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from cvfs.cache.files import STAMP_S
from cvfs.cache.leases import Leases
from cvfs.cache.shards import SHARDS, CachedFile, disk_bytes, list_shard

log = logging.getLogger(__name__)

_SAMPLE = 200
"""Files, if there are so many: with the oldest quarter of them one is near what an exact list would have given."""

_OF_SAMPLE = 4

Keep = Callable[[int], Collection[bytes]]
"""The ids of one shard that must stay."""


def evict(cache: Path, kinds: Sequence[str], need_bytes: int, keep: Keep, leases: Leases) -> Iterator[int]:
    """Remove files of these kinds until `need_bytes` are free; yields what each step has freed.

    It ends early when nothing is left that may go. Files that somebody has open or mapped stay, as their space would
    not come back either.
    """
    freed = 1
    while need_bytes > 0 and freed:
        freed = 0
        for sample in _samples(cache, kinds, keep):
            step = _evict_oldest(sample, need_bytes, leases)
            yield step
            freed += step
            need_bytes -= step
            if need_bytes <= 0:
                break


def remove_all(cache: Path, kinds: Sequence[str], leases: Leases) -> Iterator[int]:
    """Remove all files of these kinds; yields what that has freed of each shard: not the space of those that are open,
    which comes back when they are closed."""
    for number in range(SHARDS):
        files = [file for kind in kinds for file in list_shard(cache, kind, number)]
        yield disk_bytes(file for file in files if _remove(file.path, leases, open_too=True))


def _samples(cache: Path, kinds: Sequence[str], keep: Keep) -> Iterator[list[CachedFile]]:
    """All files that may go, in samples, the shards in random order."""
    sample: list[CachedFile] = []
    for number in random.sample(range(SHARDS), SHARDS):
        found = [file for kind in kinds for file in list_shard(cache, kind, number)]
        if found:
            kept = keep(number)
            sample += [file for file in found if file.name not in kept]
        if len(sample) >= _SAMPLE:
            yield sample
            sample = []
    if sample:
        yield sample


def _evict_oldest(sample: list[CachedFile], need_bytes: int, leases: Leases) -> int:
    latest_s = time.time() + STAMP_S

    def last_use(file: CachedFile) -> float:
        return file.used_s if file.used_s <= latest_s else 0.0  # by a clock that was wrong: nothing is known

    freed = 0
    may_go = max(1, len(sample) // _OF_SAMPLE)
    for file in sorted(sample, key=last_use):
        if freed >= need_bytes or not may_go:
            break
        if _remove(file.path, leases, open_too=False):
            freed += file.disk_bytes
            may_go -= 1
    return freed


def _remove(path: bytes, leases: Leases, *, open_too: bool) -> bool:
    """Remove a file, if nobody has it open or `open_too`; whether that has freed its space."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        is_unused = leases.is_unused(fd)
        if is_unused or open_too:
            os.unlink(path)
        return is_unused
    except OSError as error:
        log.debug("cannot evict %s: %s", os.fsdecode(path), error)
        return False
    finally:
        os.close(fd)
