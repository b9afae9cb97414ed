"""How fast is publishing, and how much is stored? Beside `tar | zstd -3 -T0` and `mksquashfs -comp zstd`."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks import peers, trees
from benchmarks.frame import Context, Report, Target, interleave, timed
from benchmarks.sandbox import Sandbox, sandbox

TAR, SQUASHFS, CVFS = "tar | zstd -3 -T0", "mksquashfs zstd", "cvfs-publisher"
MB = 1e6

PUBLISH = Target(5.0)
SMALL = Target(6_000, is_upper=False)
LARGE = Target(200, is_upper=False)
UNCHANGED = Target(50_000, is_upper=False)


def measure(context: Context) -> Report:
    report = Report("Publish: how fast, how much is stored", TAR)
    with sandbox(context.work) as box:
        _software(report, context, box)
        _rates(report, context, box)
    report.notes += [
        "Whole processes, the source in the page cache; every subject ends with its output on the disk (sync).",
        "'process' counts from the start of the interpreter to its end, 'work' is what the publisher says it took.",
    ]
    return report


def _software(report: Report, context: Context, box: Sandbox) -> None:
    """The tree of parts of /usr, new and unchanged."""
    tree = trees.software(context)
    _warm(tree)
    what = f"new: {_describe(tree)}"
    subjects = {CVFS: lambda: _publish_new(box, tree)["wall_s"], **_peers(box, tree)}
    report.add_all(what, "s", interleave(context.runs, subjects), None if context.smoke else PUBLISH)
    sizes = {name: [_size(box.store if name == CVFS else _output(box, name)) / MB] for name in subjects}
    limit = Target(sizes[TAR][0]) if TAR in sizes else None
    report.add_all("stored", "MB", sizes, limit)


def _rates(report: Report, context: Context, box: Sandbox) -> None:
    small, large = trees.small_files(context), trees.large_files(context)
    _warm(small)
    count, size = _count(small), _size(large) / MB
    new = [_publish_new(box, small) for _ in range(context.runs)]
    same = [box.publish(small) for _ in range(context.runs)]
    assert not same[-1]["published"]
    _add_rate(report, f"small files, new: {count:,} files of 0.5-8 KiB", "files/s", count, new, SMALL)
    _add_rate(report, f"small files, unchanged: {count:,} files", "files/s", count, same, UNCHANGED)
    _warm(large)
    new = [_publish_new(box, large) for _ in range(context.runs)]
    _add_rate(report, f"large files, new: {size:,.0f} MB in files of 64 MiB", "MB/s", size, new, LARGE)


def _add_rate(
    report: Report, what: str, unit: str, amount: float, runs: list[dict[str, float]], target: Target
) -> None:
    report.add(what, f"{CVFS}, process", unit, [amount / run["wall_s"] for run in runs], target)
    report.add(what, f"{CVFS}, work", unit, [amount / run["seconds"] for run in runs])


def _publish_new(box: Sandbox, tree: Path) -> dict[str, float]:
    box.forget_store()
    box.init()
    return box.publish(tree)


def _peers(box: Sandbox, tree: Path) -> dict[str, Callable[[], float]]:
    found: dict[str, Callable[[], float]] = {}
    if peers.have("tar", "zstd"):
        found[TAR] = lambda: timed(lambda: _synced(peers.make_archive, tree, _output(box, TAR)))
    if peers.have("mksquashfs"):
        found[SQUASHFS] = lambda: timed(lambda: _synced(peers.make_image, tree, _output(box, SQUASHFS)))
    return found


def _synced(make: Callable[[Path, Path], None], tree: Path, output: Path) -> None:
    make(tree, output)
    descriptor = os.open(output, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _output(box: Sandbox, name: str) -> Path:
    return box.directory / ("archive.tar.zst" if name == TAR else "image.squashfs")


def _warm(tree: Path) -> None:
    subprocess.run(f"tar cf - -C '{tree}' . | cat > /dev/null", shell=True, check=True)


def _describe(tree: Path) -> str:
    return f"{_count(tree):,} files, {_size(tree) / MB:,.0f} MB"


def _count(tree: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(tree))


def _size(path: Path) -> int:
    """The sum of the sizes of files: each is one object on a server."""
    if path.is_file():
        return path.stat().st_size
    return sum(os.lstat(os.path.join(top, name)).st_size for top, _, names in os.walk(path) for name in names)
