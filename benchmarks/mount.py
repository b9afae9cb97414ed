"""How long does it take until a mount can be used, as the repository grows from 1,000 to 1,000,000 files?"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks import peers, synthetic, trees
from benchmarks.frame import Context, Report, Target, interleave, timed
from benchmarks.sandbox import Sandbox, sandbox

TARGET = Target(0.5)
START = "python: imports alone"
_IMPORTS = "import trio, requests, lmdb, msgspec, blake3, zstandard, xxhash, click"


def measure(context: Context) -> Report:
    report = Report("Mount until usable: the whole `cvfs mount`, and a first stat", START)
    sizes = [100, 1_000] if context.smoke else [1_000, 10_000, 100_000, 1_000_000]
    for count in sizes:
        with sandbox(context.work) as box:
            synthetic.make_store(box.store, count)
            _measure(report, context, box, count)
    if peers.have_squashfuse():
        report.add("a peer", peers.SQUASHFUSE, "s", _squashfuse(context))
    report.notes.append(
        "The repositories are written by cvfs.format.tree.build, without files on a disk: see synthetic.py."
    )
    return report


def _measure(report: Report, context: Context, box: Sandbox, count: int) -> None:
    with box.serve() as url:
        for is_known in (False, True):
            subjects: dict[str, Callable[[], float]] = {
                f"cvfs {engine}": partial(_mount, box, url, engine, fresh=not is_known) for engine in context.engines
            }
            subjects[START] = lambda: timed(lambda: subprocess.run([sys.executable, "-c", _IMPORTS], check=True))
            state = "seen before" if is_known else "never seen"
            report.add_all(f"{count:,} files, {state}", "s", interleave(context.runs, subjects), TARGET)


def _mount(box: Sandbox, url: str, engine: str, *, fresh: bool) -> float:
    if fresh:
        box.forget_cache()
    argv = ("mount", url, str(box.mount_point), "--engine", engine)
    try:
        return timed(lambda: (box.command("cvfs", *argv), os.stat(box.mount_point)))
    finally:
        box.command("cvfs", "umount", str(box.mount_point))


def _squashfuse(context: Context) -> list[float]:
    image = peers.image_of(context, trees.operations(context))
    with sandbox(context.work) as box:

        def once() -> float:
            started = time.perf_counter()
            with peers.squashfuse(image, box.mount_point) as mounted:
                os.stat(mounted)
                return time.perf_counter() - started

        return [once() for _ in range(context.runs)]
