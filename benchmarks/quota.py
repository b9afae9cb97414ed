"""How well is the cache's limit kept, at what cost, and how much of what is read is in a cache that is too small?

The cache alone, without network and kernel: a miss stores the pack that the object is in, as a fetch would, and nothing
is made a file, since a cache that is full keeps packs. The peer has each object in a file of its own. In memory
(/dev/shm) where there is such a place, so that no disk is measured.
"""

import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.frame import Context, Report, Target, interleave
from cvfs.cache import Cache
from cvfs.cache.index_files import FIRST_CAPACITY
from cvfs.cache.inode_table import size_of
from cvfs.cache.shards import count
from cvfs.cache.space import Limits
from cvfs.format.blob import seal

OBJECT_BYTES = 16 << 10
MEMORY = Path("/dev/shm")
PACK = 64
"""Objects: 1 MiB."""

SHARE = 0.25
"""Of the working set that fits."""

PLAIN_PART = 3
"""Of an object this part is noise, the rest compresses to nothing: about as software does."""

PEER = "exact LRU of files"
WHO = "cvfs"
UNLIMITED = "cvfs, no limit"
INDEX_BYTES = size_of(FIRST_CAPACITY)
"""The inode index is within the limit, too."""

Pattern = Callable[[random.Random, int, int], Iterator[int]]


def measure(context: Context) -> Report:
    report = Report("The limit of the cache: how much is found in one that holds a quarter of what is read", PEER)
    packs, reads = context.pick(128, 16), context.pick(4_000, 400)
    for name, pattern in (("all alike", _uniform), ("some more often", _skewed), ("a part at a time", _moving)):
        _measure_hits(context, report, name, list(pattern(random.Random(1), packs * PACK, reads)), packs)
    _measure_cost(context, report, packs)
    return report


def _measure_hits(context: Context, report: Report, name: str, wanted: Sequence[int], packs: int) -> None:
    objects = int(packs * PACK * SHARE)
    with _Reader(context.work, objects * OBJECT_BYTES, packs) as reader:
        ratio = reader.read(wanted)
        most = max(reader.samples)
    report.add(f"found, {name}", WHO, "%", ratio * 100, Target(0.9, is_upper=False, is_ratio=True))
    report.add(f"found, {name}", PEER, "%", _exact_lru(wanted, objects) * 100)
    report.add(f"most of the limit that was used, {name}", WHO, "%", most * 100 / reader.limit, Target(100.0))


def _measure_cost(context: Context, report: Report, packs: int) -> None:
    """CPU time for each pack that is stored, with and without evicting as much."""

    def measure(limit: int) -> float:
        with _Reader(context.work, limit, packs) as reader:
            started = time.process_time()
            for pack in range(packs):
                reader.store(pack)
            return (time.process_time() - started) * 1000 / packs

    limit = int(packs * PACK * OBJECT_BYTES * SHARE)
    samples = interleave(context.runs, {WHO: lambda: measure(limit), UNLIMITED: lambda: measure(1 << 50)})
    report.add_all("CPU to store a pack of 64 objects", "ms", samples)


class _Reader:
    """Reads objects of a made-up repository, through a cache that is below `work` as long as the context."""

    def __init__(self, work: Path, limit: int, packs: int) -> None:
        noise, size = random.Random(2), OBJECT_BYTES // PLAIN_PART
        contents = [noise.randbytes(size).ljust(OBJECT_BYTES) for _ in range(packs * PACK)]
        self._sealed = [seal(b"".join(contents[first : first + PACK])) for first in range(0, len(contents), PACK)]
        self._work, self.limit = work, limit
        self.samples: list[int] = []
        """Bytes on the disk, now and then."""

    def __enter__(self) -> "_Reader":
        self._directory = TemporaryDirectory(prefix="run-", dir=MEMORY if MEMORY.is_dir() else self._work)
        self._cache = Cache(Path(self._directory.name) / "cache", Limits(self.limit + INDEX_BYTES, 0))
        return self

    def __exit__(self, *_: object) -> None:
        self._cache.close()
        self._directory.cleanup()

    def read(self, wanted: Sequence[int]) -> float:
        """The share of `wanted` that was found."""
        hits = 0
        for position, number in enumerate(wanted):
            ref, _ = self._sealed[number // PACK]
            if self._cache.packs.load(ref.id, ref.stored_size) is not None:
                hits += 1
            else:
                self.store(number // PACK)
            if not position % 100:
                self.samples.append(sum(count(self._cache.directory.path)))
        return hits / len(wanted)

    def store(self, pack: int) -> None:
        ref, stored = self._sealed[pack]
        self._cache.store_pack(ref.id, stored)


def _exact_lru(wanted: Sequence[int], objects: int) -> float:
    """What a list in the order of use would find, if each miss brought a pack as well."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for number in wanted:
        hits += number in held
        brought = [number] if number in held else range(number // PACK * PACK, (number // PACK + 1) * PACK)
        for each in brought:
            held[each] = None
            held.move_to_end(each)
        while len(held) > objects:
            held.popitem(last=False)
    return hits / len(wanted)


def _uniform(random_: random.Random, objects: int, reads: int) -> Iterator[int]:
    return (random_.randrange(objects) for _ in range(reads))


def _skewed(random_: random.Random, objects: int, reads: int) -> Iterator[int]:
    """Nine reads of ten are of a tenth of the packs."""
    hot = random_.sample(range(objects // PACK), max(1, objects // PACK // 10))
    for _ in range(reads):
        pack = random_.choice(hot) if random_.random() < 0.9 else random_.randrange(objects // PACK)
        yield pack * PACK + random_.randrange(PACK)


def _moving(random_: random.Random, objects: int, reads: int) -> Iterator[int]:
    """An eighth of all objects, which moves through them: one job after the other."""
    window = objects // 8
    for position in range(reads):
        yield (position * objects // reads + random_.randrange(window)) % objects
