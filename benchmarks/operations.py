"""What does a single operation cost? Medians over thousands, from a process that does nothing else."""

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from benchmarks import peers, trees
from benchmarks.frame import Context, Report, Target, drop_caches
from benchmarks.sandbox import Mount, Sandbox, sandbox

Operation = Callable[[int, str], object]
"""Does it once: with a name in the directory that a descriptor is open on."""

Mounted = Callable[[], AbstractContextManager[Path]]


def _stat(directory: int, name: str) -> object:
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def _stat_absent(directory: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.stat(name + "-absent", dir_fd=directory)


def _open_read_close(directory: int, name: str) -> object:
    descriptor = os.open(name, os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(descriptor, 65536)
    finally:
        os.close(descriptor)


def _list(directory: int, name: str) -> object:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)


def _readlink(directory: int, name: str) -> object:
    return os.readlink(name, dir_fd=directory)


OPERATIONS: dict[str, tuple[str, Operation]] = {
    "stat": ("files", _stat),
    "stat of a name that is not there": ("files", _stat_absent),
    "open + read + close, 4 KiB": ("files", _open_read_close),
    "opendir + readdir, 20 names": ("directories", _list),
    "readlink": ("links", _readlink),
}
STATES = {"new": "first time in a new mount", "dropped": "names and inodes dropped", "hot": "hot"}
HOT = Target(2.5, is_ratio=True)
TARGETS = {
    ("channel", "stat", "hot"): HOT,
    ("channel", "stat of a name that is not there", "hot"): HOT,
    ("channel", "open + read + close, 4 KiB", "hot"): HOT,
    ("channel", "opendir + readdir, 20 names", "hot"): HOT,
    ("channel", "readlink", "hot"): HOT,
    ("channel", "stat", "new"): Target(40),
    ("channel", "stat", "dropped"): Target(40),
}


def measure(context: Context) -> Report:
    report = Report("Single operations, at the caller (each includes about 1 us of Python)", peers.LOCAL)
    tree = trees.operations(context)
    with sandbox(context.work) as box:
        box.init()
        box.publish(tree)
        with box.serve() as url:
            samples = [_round(context, box, url, tree) for _ in range(context.runs)]
            messages = _messages(box, url, tree) if "channel" in context.engines else {}
    for key in dict.fromkeys(key for round_ in samples for key in round_):
        who, operation, state = key
        values = [round_[key] for round_ in samples if key in round_]
        target = TARGETS.get((who.removeprefix("cvfs "), operation, state))
        report.add(f"{operation}, {STATES[state]}", who, "us", values, target)
    order = [f"{operation}, {what}" for operation in OPERATIONS for what in STATES.values()]
    report.rows.sort(key=lambda row: order.index(row.what))
    for operation, count in messages.items():
        report.add("messages to the daemon for each, hot", f"cvfs channel, {operation}", "", count, Target(0))
    report.notes.append(
        "'dropped' is drop_caches=2: for ext4 the inode is then read from the block cache, not from the disk."
    )
    return report


def _round(context: Context, box: Sandbox, url: str, tree: Path) -> dict[tuple[str, str, str], float]:
    """Medians by (subject, operation, state)."""
    counts = {name: len(os.listdir(tree / name)) for name in ("files", "links", "directories")}
    found: dict[tuple[str, str, str], float] = {}
    for who, mounted in _subjects(context, box, url, tree).items():
        for operation, (directory, action) in OPERATIONS.items():
            with mounted() as top:
                for state in STATES:
                    if state == "dropped":
                        if not context.can_drop_caches:
                            continue
                        drop_caches(2)
                    found[who, operation, state] = _median_us(top / directory, counts[directory], action)
    return found


def _messages(box: Sandbox, url: str, tree: Path) -> dict[str, float]:
    """How many requests the kernel sends for one operation, when it has seen all names and bytes before."""
    found = {}
    with box.mount(url, "channel") as mount:
        for operation, (directory, action) in OPERATIONS.items():
            count = len(os.listdir(tree / directory))
            for _ in range(2):
                before = _requests(mount)
                _median_us(mount.directory / directory, count, action)
                found[operation] = (_requests(mount) - before) / count
    return found


def _requests(mount: Mount) -> int:
    return sum(mount.status()["requests"].values())


def _subjects(context: Context, box: Sandbox, url: str, tree: Path) -> dict[str, Mounted]:
    """By subject, what mounts it anew. Ours has the whole tree in its local cache beforehand."""

    def ours(engine: str) -> Mounted:
        @contextmanager
        def mounted() -> Iterator[Path]:
            with box.mount(url, engine) as mount:
                yield mount.directory

        return mounted

    @contextmanager
    def local() -> Iterator[Path]:
        yield tree

    @contextmanager
    def squashfuse() -> Iterator[Path]:
        with peers.squashfuse(peers.image_of(context, tree), box.directory / "peer") as mounted:
            yield mounted

    found: dict[str, Mounted] = {f"cvfs {engine}": ours(engine) for engine in context.engines}
    for mounted in found.values():
        _fill_cache(mounted)
    found[peers.LOCAL] = local
    if peers.have_squashfuse():
        found[peers.SQUASHFUSE] = squashfuse
    return found


def _fill_cache(mounted: Mounted) -> None:
    with mounted() as top:
        for directory, _, names in os.walk(top):
            for name in names:
                Path(directory, name).read_bytes()


def _median_us(top: Path, count: int, action: Operation) -> float:
    """Of one pass over the names below `top`, which are not listed: that would bring them into the kernel's caches."""
    names = [f"{number:05}" for number in range(count)]
    random.Random(7).shuffle(names)
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return statistics.median(_pass(descriptor, names, action)) / 1e3
    finally:
        os.close(descriptor)


def _pass(descriptor: int, names: Sequence[str], action: Operation) -> list[int]:
    clock, samples = time.perf_counter_ns, []
    for name in names:
        started = clock()
        action(descriptor, name)
        samples.append(clock() - started)
    return samples
