"""The root directory that a command sees: that of the host, and in it the directories on which repositories are
mounted, which on the host need not exist. The host itself is not changed."""

import contextlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from cvfs.errors import MountError
from cvfs.fuse.mountinfo import parse_mounts
from cvfs.rootless.namespaces import MS_BIND, MS_MOVE, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_REC, mount

BASE: Final = Path("/cvfs")
"""Below it repositories are mounted that are to be mounted nowhere else."""

_SITES: Final = ("mnt", "media", "srv", "opt", "home")
_IN_MEMORY: Final = ("tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")


def prepare_root(directories: Iterable[Path]) -> None:
    """See to it that the directories, which are absolute, exist in this mount namespace.

    `BASE` is made anew, and so is what would be directly below the root; all else has to exist. Raises MountError.
    """
    wanted = list(directories)
    made = {_top(path) for path in wanted if _top(path) == BASE or not os.path.lexists(_top(path))}
    # What is mounted on itself has to be empty and no mount point; the tmpfs that the others get would be in its way.
    anew = {path for path in made if path in wanted or not path.is_dir()}
    if anew:
        _add_to_root(anew)
    for path in made - anew:
        mount("tmpfs", path, *_IN_MEMORY)
    for path in wanted:
        if _top(path) in made:
            path.mkdir(parents=True, exist_ok=True)
        elif not path.is_dir():
            raise MountError(f"cannot mount on {path}: it is no directory; make it first (mkdir -p {path})")
    # The PID namespace has numbers of its own. A container may forbid a new /proc; the old one does for most.
    with contextlib.suppress(MountError):
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def _top(path: Path) -> Path:
    return Path("/", *path.parts[1:2])


def _add_to_root(directories: Collection[Path]) -> None:
    """Go on in a root that has all that the present one has, and these directories, empty. It is put together on a
    directory that every host has, and covers it meanwhile."""
    site = _choose_site()
    covered = os.open(site, os.O_PATH)
    mount("tmpfs", site, *_IN_MEMORY)
    with os.scandir("/") as entries:
        for entry in entries:
            if Path(entry.path) in directories:
                continue
            if entry.path == os.fspath(site):
                (site / entry.name).mkdir()
                mount(f"/proc/self/fd/{covered}", site / entry.name, flags=MS_BIND)
            else:
                _show(entry, site / entry.name)
    os.close(covered)
    for path in directories:
        (site / path.name).mkdir()
    os.chdir(site)
    mount(".", "/", flags=MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def _choose_site() -> Path:
    """One with nothing mounted on or below it: what is, would come along and be in its own way."""
    mounted = {_top(each.directory) for each in parse_mounts(Path("/proc/self/mountinfo").read_bytes())}
    free = [path for path in (Path("/", name) for name in _SITES) if path.is_dir() and path not in mounted]
    if not free:
        raise MountError(f"cannot show {BASE} to the command: something is mounted on each of {', '.join(_SITES)}")
    return free[0]


def _show(entry: os.DirEntry[str], target: Path) -> None:
    """Have an entry of the root at `target` as well, with all that is mounted below."""
    if entry.is_symlink():
        target.symlink_to(os.readlink(entry.path))
        return
    if entry.is_dir():
        target.mkdir()
    else:
        target.touch()
    mount(entry.path, target, flags=MS_BIND | MS_REC)
