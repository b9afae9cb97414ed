"""/proc/self/mountinfo: what is mounted where, known without asking any file system that might hang."""

import os
import re
from pathlib import Path
from typing import Final

import msgspec

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


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
    # The last component is a mount's root if there is one: resolving it could wait for that file system.
    parent = Path(os.path.realpath(directory.parent if directory.name != ".." else directory))
    direct = parent / directory.name if directory.name not in ("", "..") else parent
    return mounts.get(direct) or mounts.get(Path(os.path.realpath(direct)))


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
