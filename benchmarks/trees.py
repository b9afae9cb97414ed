"""Trees to publish. Made once and kept in the work directory; each is the same whenever it is made on one machine."""

import os
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.frame import Context

KIB, MIB = 1 << 10, 1 << 20

_FILES = 28_000
_BYTES = 480_000_000

_PARTS = (
    ("/usr/include", 8_000, 110_000_000),
    ("/usr/lib/python3", 3_000, 50_000_000),
    ("/usr/lib/python3.11", 1_500, 55_000_000),
    ("/usr/lib/git-core", 200, 25_000_000),
    ("/usr/lib/x86_64-linux-gnu", 2_500, 150_000_000),
    ("/usr/lib/aarch64-linux-gnu", 2_500, 150_000_000),
    ("/usr/share/perl", 1_500, 20_000_000),
    ("/usr/share/vim", 2_000, 40_000_000),
    ("/usr/share/man", 4_000, 20_000_000),
    ("/usr/share/cmake-3.25", 3_000, 20_000_000),
    ("/usr/share/i18n", 600, 20_000_000),
    ("/usr/share/zoneinfo", 1_500, 10_000_000),
    ("/usr/share/icons", 2_000, 20_000_000),
    ("/usr/share/doc", 2_000, 60_000_000),
    ("/usr/share", _FILES, 60_000_000),
    ("/usr/lib", _FILES, _BYTES),
)
"""(directory, at most so many files, at most so many bytes). What is missing in one is taken from those below it."""

_LARGE = 24 * MIB
_NOT_OF_A_LIBRARY = ("test", "tests", "site-packages", "config-*", "ensurepip", "idlelib", "lib2to3", "__pycache__")


@dataclass(slots=True)
class _Budget:
    files: int
    size_bytes: int
    taken: set[bytes] = field(default_factory=set)

    def take(self, path: bytes, size_bytes: int) -> bool:
        if self.files <= 0 or size_bytes > min(self.size_bytes, _LARGE) or path in self.taken:
            return False
        self.taken.add(path)
        self.files -= 1
        self.size_bytes -= size_bytes
        return True


def software(context: Context) -> Path:
    """About 28,000 files, 480 MB: parts of /usr, and of the running Python's library where /usr has too little."""
    if context.tree is not None:
        return context.tree
    files, size_bytes = context.pick(_FILES, 150), context.pick(_BYTES, 1_000_000)
    return _kept(context, f"software-{files}", lambda top: _copy_parts(top, _Budget(files, size_bytes)))


def small_files(context: Context) -> Path:
    """50,000 files of 512 bytes to 8 KiB, 100 in each directory, as compressible as source code."""
    count = context.pick(50_000, 200)

    def make(top: Path) -> None:
        chance, text = random.Random(1), _text()
        for number in range(count):
            directory = top / f"{number // 100:04}"
            if number % 100 == 0:
                directory.mkdir()
            start, length = chance.randrange(len(text) - 8 * KIB), chance.randrange(512, 8 * KIB)
            (directory / f"file{number:06}.txt").write_bytes(b"%d\n" % number + text[start : start + length])

    return _kept(context, f"small-{count}", make)


def large_files(context: Context) -> Path:
    """Files of 64 MiB, 512 MiB in all: half of each does not compress, as in archives and models."""
    count, size = context.pick(8, 1), context.pick(64 * MIB, 5 * MIB)

    def make(top: Path) -> None:
        chance, text = random.Random(2), _text()
        for number in range(count):
            with (top / f"large{number}.bin").open("wb") as file:
                for _ in range(size // MIB):
                    start = chance.randrange(len(text) - MIB // 2)
                    file.write(chance.randbytes(MIB // 2) + text[start : start + MIB // 2])

    return _kept(context, f"large-{count}", make)


def operations(context: Context) -> Path:
    """For single operations: `files` (of 4 KiB), `links` and `directories`."""
    count = context.pick(2_000, 20)

    def make(top: Path) -> None:
        chance = random.Random(3)
        for name in ("files", "links", "directories"):
            (top / name).mkdir()
        for number in range(count):
            (top / "files" / f"{number:05}").write_bytes(chance.randbytes(4 * KIB))
            (top / "links" / f"{number:05}").symlink_to(f"../files/{number:05}")
        for number in range(count // 10):
            directory = top / "directories" / f"{number:05}"
            directory.mkdir()
            for place in range(20):
                (directory / f"name{place:02}").touch()

    return _kept(context, f"operations-{count}", make)


def python(context: Context) -> Path:
    """The running interpreter's library, with scipy installed into it but for a smoke run; compiled."""
    library = Path(sysconfig.get_path("stdlib"))

    def make(top: Path) -> None:
        copy = top / "lib" / library.name
        shutil.copytree(library, copy, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_OF_A_LIBRARY))
        if not context.smoke:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target"]
            subprocess.run([*pip, str(copy / "site-packages"), "scipy"], check=True)
        argv = ["-m", "compileall", "-q", str(copy)]
        subprocess.run([sys.executable, *argv], check=False, stdout=subprocess.DEVNULL)

    return _kept(context, f"python-{context.pick(1, 0)}", make)


def entries(context: Context) -> Path:
    """20,000 entries: empty files, 100 in each directory."""
    count = context.pick(198, 2)

    def make(top: Path) -> None:
        for number in range(count):
            directory = top / f"{number:04}"
            directory.mkdir()
            for place in range(100):
                (directory / f"file{place:02}").touch()

    return _kept(context, f"entries-{count * 101}", make)


def _kept(context: Context, name: str, make: Callable[[Path], None]) -> Path:
    """The tree `name`, made now if it is not there: it appears whole or not at all."""
    top = context.work / "trees" / name
    if not top.is_dir():
        unfinished = top.with_suffix(f".{os.getpid()}")
        unfinished.mkdir(parents=True)
        try:
            make(unfinished)
            unfinished.rename(top)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return top


def _copy_parts(top: Path, total: _Budget) -> None:
    library = sysconfig.get_path("stdlib")
    for source, files, size_bytes in (*_PARTS, (library, _FILES, _BYTES)):
        part = _Budget(min(files, total.files), min(size_bytes, total.size_bytes), total.taken)
        before = part.files, part.size_bytes
        _copy(os.fsencode(source), os.fsencode(top / source.lstrip("/")), part)
        total.files -= before[0] - part.files
        total.size_bytes -= before[1] - part.size_bytes


def _copy(source: bytes, target: bytes, budget: _Budget) -> None:
    for path, size_bytes in _files(source):
        if not budget.take(path, size_bytes):
            continue
        copy = os.path.join(target, os.path.relpath(path, source))
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        if not os.path.lexists(copy):
            shutil.copy2(path, copy, follow_symlinks=False)


def _files(source: bytes) -> Iterator[tuple[bytes, int]]:
    """Regular files and symbolic links below `source`, always in the same order, with their sizes."""
    for directory, below, names in os.walk(source):
        below.sort()
        for name in sorted(names) + [name for name in below if os.path.islink(os.path.join(directory, name))]:
            path = os.path.join(directory, name)
            if os.path.islink(path):
                yield path, 0
            elif os.path.isfile(path) and os.access(path, os.R_OK):
                yield path, os.path.getsize(path)


def _text() -> bytes:
    """A few MiB of real text: the sources of the standard library."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return b"".join(path.read_bytes() for path in sources)[: 8 * MIB]
