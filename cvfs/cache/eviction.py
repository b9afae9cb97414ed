"""Which files go when room is needed: of a fair sample, those that were used least recently.

The whole cache is never looked through for that: a shard or a few are a sample, of which at most a quarter goes before
the next is taken.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cvfs.cache.files import STAMP_S
from cvfs.cache.leases import Leases
from cvfs.cache.shards import BLOCK_BYTES, SHARDS, CachedFile, list_shard

log = logging.getLogger(__name__)

_SAMPLE = 200
"""Files, if there are so many: with the oldest quarter of them one is near what an exact list would have given."""

_OF_SAMPLE = 4


class Evicted(NamedTuple):
    """What was evicted, in bytes on the disk; how many files stayed only because somebody has them open, or is about to
    evict them."""

    freed: int
    in_use: int


Keep = Callable[[int], Collection[bytes]]
"""The ids of one shard that must stay."""


def evict(cache: Path, kinds: Sequence[str], need_bytes: int, keep: Keep, leases: Leases) -> Iterator[Evicted]:
    """Remove files of these kinds until `need_bytes` are free; yields what each step has found.

    It ends early when nothing is left that may go. Files that somebody has open or mapped stay, as their space would
    not come back either.
    """
    freed = 1
    while need_bytes > 0 and freed:
        freed = 0
        for sample in _samples(cache, kinds, keep):
            step = _evict_oldest(sample, need_bytes, leases)
            yield step
            freed += step.freed
            need_bytes -= step.freed
            if need_bytes <= 0:
                break


def remove_all(cache: Path, kinds: Sequence[str], leases: Leases) -> Iterator[Evicted]:
    """Remove all files of these kinds; yields what was found in each shard: the space of those that are in use comes
    back when they are closed."""
    for number in range(SHARDS):
        files = [file for kind in kinds for file in list_shard(cache, kind, number)]
        yield all_evicted(_remove(file.path, leases, open_too=True) for file in files)


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


def _evict_oldest(sample: list[CachedFile], need_bytes: int, leases: Leases) -> Evicted:
    latest_s = time.time() + STAMP_S

    def last_use(file: CachedFile) -> float:
        return file.used_s if file.used_s <= latest_s else 0.0  # by a clock that was wrong: nothing is known

    freed, in_use = 0, 0
    may_go = max(1, len(sample) // _OF_SAMPLE)
    for file in sorted(sample, key=last_use):
        if freed >= need_bytes or not may_go:
            break
        found = _remove(file.path, leases, open_too=False)
        freed, in_use = freed + found.freed, in_use + found.in_use
        may_go -= found.freed > 0
    return Evicted(freed, in_use)


def all_evicted(found: Iterable[Evicted]) -> Evicted:
    """The sum of what was found in several places."""
    steps = list(found)
    return Evicted(sum(each.freed for each in steps), sum(each.in_use for each in steps))


def _remove(path: bytes, leases: Leases, *, open_too: bool) -> Evicted:
    """Remove a file, if nobody has it open or `open_too`. What it takes is asked for now: it may have grown."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except BlockingIOError:  # somebody else asks for it
        return Evicted(0, 1)
    except OSError:
        return Evicted(0, 0)
    try:
        is_unused = leases.is_unused(fd)
        size = os.fstat(fd).st_blocks * BLOCK_BYTES
        if is_unused or open_too:
            os.unlink(path)
        return Evicted(size, 0) if is_unused else Evicted(0, 1)
    except OSError as error:
        log.debug("cannot evict %s: %s", os.fsdecode(path), error)
        return Evicted(0, 0)
    finally:
        os.close(fd)
