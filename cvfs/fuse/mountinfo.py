"""/proc/self/mountinfo: what is mounted where, known without asking any file system that might hang."""

import errno
import os
import re
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")

_MOST_LINKS: Final = 40
"""As many as the kernel follows (path_resolution(7))."""

_PATIENCE_S: Final = 2.0
"""For a file system to say whether something is a link."""


class MountInfo(msgspec.Struct, frozen=True):
    """One mount. `device` is "major:minor" of its st_dev, also the name of its bdi; `kind` the type of file system."""

    device: str
    directory: Path
    kind: str
    source: str


def find_mount(directory: Path) -> MountInfo | None:
    """What is mounted on `directory` itself, the topmost if several are; None if nothing is, or it does not exist.

    Where nothing is, `directory` is looked at, and an automounter would mount: not for who has just been unmounted.
    """
    mounts = _mounts()
    try:
        return mounts.get(_resolve(directory, mounts))
    except OSError:  # links that go round in a circle lead to nothing
        return None


def resolve(path: Path, ends: Collection[Path] = ()) -> Path:
    """The canonical path of `path`, which need not exist: all links in it are followed, but for those below `ends`.

    Whether a mount point is a link is not asked: what is mounted there may hang, or be dead. Of what is below one, a
    FUSE file system is asked, and where it does not answer in time, links are taken to be none. Raises OSError (ELOOP).
    """
    return _resolve(path, _mounts(), ends)


def is_mounted(point: Path, device: str) -> bool:
    """Whether what is on top on `point`, spelled as a MountInfo has it, is the mount `device`. Looks at no path."""
    mounted = _mounts().get(point)
    return mounted is not None and mounted.device == device


def find_mount_of(point: Path) -> MountInfo | None:
    """The mount that `point` is in, spelled like that: its own if it has one. Looks at no path."""
    mounts = _mounts()
    return next((mounts[path] for path in (point, *point.parents) if path in mounts), None)


def _mounts() -> dict[Path, MountInfo]:
    return {mount.directory: mount for mount in parse_mounts(Path("/proc/self/mountinfo").read_bytes())}


def _resolve(path: Path, mounts: Mapping[Path, MountInfo], ends: Collection[Path] = ()) -> Path:
    place, links, is_answered = Path("/"), 0, True
    names = [*reversed(path.absolute().parts[1:])]
    while names:
        name = names.pop()
        if name in ("", ".", ".."):
            place = place.parent if name == ".." else place
            continue
        place /= name
        if place in ends:
            return place.joinpath(*reversed(names))
        if place in mounts or not is_answered:
            continue
        target = _ask_link(place, mounts)
        if target is None:
            is_answered = False
        elif target:
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
            place = Path("/") if target.startswith("/") else place.parent
            names += reversed(target.split("/"))
    return place


def _ask_link(path: Path, mounts: Mapping[Path, MountInfo]) -> str | None:
    """What a link leads to; empty if it is none, or not there; None: its file system does not answer."""
    answers: list[str] = []

    def ask() -> None:
        try:
            answers.append(os.readlink(path))
        except OSError:
            answers.append("")

    mounted = next((mounts[above] for above in path.parents if above in mounts), None)
    if mounted is not None and mounted.kind.startswith("fuse"):
        # A thread, because a system call on a mount that hangs cannot be given a deadline.
        thread = threading.Thread(target=ask, name=f"question to {mounted.directory}", daemon=True)
        thread.start()
        thread.join(_PATIENCE_S)
    else:
        ask()
    return answers[0] if answers else None


def parse_mounts(text: bytes) -> list[MountInfo]:
    """The lines of mountinfo (proc_pid_mountinfo(5)), in order: of two mounts on one directory the later is on top."""
    return [_parse_line(line) for line in text.splitlines()]


def _parse_line(line: bytes) -> MountInfo:
    """`id parent device root directory options [optional...] - kind source superblock-options`."""
    fields = line.split(b" ")
    kind, source = fields[fields.index(b"-", 6) + 1 :][:2]
    return MountInfo(fields[2].decode(), Path(_plain(fields[4])), _plain(kind), _plain(source))


def _plain(field: bytes) -> str:
    """Blanks, backslashes and line ends are written as octal numbers."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), field))
