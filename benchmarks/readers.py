"""What users do with a tree, by the programs they do it with: walk it, read it. Each returns seconds."""

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from benchmarks.frame import timed

_FILE_IS_BYTES: Final = 32 << 10
"""To read a file from a mount takes as long as so many bytes of a large one, about, beside those it has."""


def walk(top: Path) -> float:
    """All metadata, by find -printf."""
    argv = ["find", str(top), "-printf", "%s %m %T@ %p %l\n"]
    return timed(lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL))


def find(top: Path) -> float:
    """All names."""
    return timed(lambda: subprocess.run(["find", str(top)], check=True, stdout=subprocess.DEVNULL))


def read(top: Path) -> float:
    """All bytes, by one tar. Through a pipe: tar does not read what it writes to /dev/null."""
    return timed(lambda: _wait([_tar(top, ["."])]))


def read_in_parallel(top: Path, names: list[list[str]]) -> float:
    """All bytes, by a tar for each share of the files."""
    return timed(lambda: _wait([_tar(top, share) for share in names]))


def stream(top: Path) -> float:
    """All bytes of some large files, one after the other, as dd reads them."""
    return timed(lambda: [_stream(path) for path in sorted(top.iterdir())])


def _stream(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        room = memoryview(bytearray(1 << 20))
        while file.readinto(room):
            pass


def shares(top: Path, count: int) -> list[list[str]]:
    """The files below `top` in `count` runs that are about as much work, by the order of a walk."""
    files = [
        (os.path.relpath(path, top), os.lstat(path).st_size + _FILE_IS_BYTES)
        for path in sorted(os.path.join(above, name) for above, _, names in os.walk(top) for name in names)
    ]
    wanted = sum(work for _, work in files) / count
    found: list[list[str]] = [[] for _ in range(count)]
    done = 0
    for name, work in files:
        found[min(count - 1, int(done / wanted)) if wanted else 0].append(name)
        done += work
    return found


def _tar(top: Path, names: list[str]) -> "subprocess.Popen[bytes]":
    """A tar of `names`, which may be too many for a command line. They come from a file: tar reads them as it goes, so
    that whoever wrote them to a pipe would begin the next tar only when this one has nearly ended."""
    command = 'tar --create --directory "$0" --null --no-unquote --files-from "$1" | cat > /dev/null'
    with TemporaryFile() as names_in:
        names_in.write(b"\0".join(map(os.fsencode, names)))
        names_in.seek(0)
        descriptor = names_in.fileno()
        argv = ["bash", "-o", "pipefail", "-c", command, str(top), f"/dev/fd/{descriptor}"]
        return subprocess.Popen(argv, pass_fds=[descriptor])


def _wait(processes: list["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, process.args)
