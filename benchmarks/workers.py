"""What are workers for? Two against one under four cold readers, and how long users wait when one is killed."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

from benchmarks import readers, trees
from benchmarks.frame import Context, Report, Target, interleave
from benchmarks.sandbox import Mount, Sandbox, sandbox

READERS = 4
STALL_TARGET = Target(500)
FASTER_TARGET = Target(1.0, is_ratio=True)
_ONE = "one worker"
_CALM_S = 1.0
"""Between two kills: the supervisor backs off from workers that end too soon."""


def measure(context: Context) -> Report:
    report = Report("Workers of one mount: two against one, and the replacement of one", _ONE)
    tree = trees.software(context)
    shares = readers.shares(tree, READERS)
    read = partial(readers.read_in_parallel, names=shares)
    with sandbox(context.work) as box:
        box.init()
        box.publish(tree)
        with box.serve() as url:
            subjects = {_ONE: partial(_cold, box, url, 1, read), "two workers": partial(_cold, box, url, 2, read)}
            samples = interleave(context.runs, subjects)
            stalls = _stalls_ms(context, box, url, tree)
    for who, seconds in samples.items():
        target = None if who == _ONE else FASTER_TARGET
        report.add(f"read all, cold, by {READERS} readers", who, "s", seconds, target)
    report.add("longest wait of a read while its worker is killed", "cvfs channel", "ms", stalls, STALL_TARGET)
    return report


def _cold(box: Sandbox, url: str, count: int, read: "partial[float]") -> float:
    box.forget_cache()
    with box.mount(url, "channel", "--workers", str(count)) as mount:
        return read(mount.directory)


def _stalls_ms(context: Context, box: Sandbox, url: str, tree: Path) -> list[float]:
    """For each kill, the longest that one read took whose bytes the kernel was told to forget."""
    name = next(
        str(path.relative_to(tree)) for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()
    )
    with box.mount(url, "channel") as mount:
        return [_stall_ms(mount, mount.directory / name, context.pick(100, 10) / 100) for _ in range(context.runs)]


def _stall_ms(mount: Mount, path: Path, calm_s: float) -> float:
    worker = mount.status()["worker_pid"]
    killed = threading.Timer(calm_s / 2, os.kill, (worker, signal.SIGKILL))
    longest, ends = 0.0, time.perf_counter() + calm_s + _CALM_S
    descriptor = os.open(path, os.O_RDONLY)
    killed.start()
    try:
        while time.perf_counter() < ends:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.perf_counter()
            os.pread(descriptor, 4096, 0)
            longest = max(longest, time.perf_counter() - started)
    finally:
        killed.join()
        os.close(descriptor)
    return longest * 1e3
