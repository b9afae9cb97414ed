"""Which repository a user means who names paths below a mount."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from cvfs.cli import common
from cvfs.errors import MountError


def find_repository(url: str, paths: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The repository, and paths in it; of paths below a mount they are found out without asking what is mounted."""
    from cvfs.fuse.mountinfo import parse_mounts, resolve
    from cvfs.mount.point import is_ours

    if "://" in url or common.configuration().has(url):
        return url, paths
    mounts = [each for each in parse_mounts(Path("/proc/self/mountinfo").read_bytes()) if is_ours(each)]
    absolute = [Path(path).absolute() for path in (url, *paths)]
    if mounts and not any(absolute[0].is_relative_to(mount.directory) for mount in mounts):
        tops = {mount.directory for mount in mounts}
        absolute = [resolve(path, tops) for path in absolute]  # links of the host: those in a repository are its own
    holders = {mount for mount in mounts if absolute[0].is_relative_to(mount.directory)}
    if not holders:
        return url, paths
    mount = max(holders, key=lambda mount: len(mount.directory.parts))
    outside = [path for path in absolute if not path.is_relative_to(mount.directory)]
    if outside:
        raise MountError(f"{outside[0]} is not below {mount.directory}, as the others are: pin it by itself")
    return _inside(mount.source, [path.relative_to(mount.directory) for path in absolute])


def _inside(source: str, paths: Iterable[Path]) -> tuple[str, Sequence[str]]:
    """A mount of many shows each repository under its name."""
    if "://" in source or common.configuration().has(source):
        return source, [str(path) for path in paths]
    names = {path.parts[0] if path.parts else "" for path in paths}
    if len(names) != 1 or "" in names:
        raise MountError("name paths of one repository at a time")
    return names.pop(), [str(Path(*path.parts[1:])) for path in paths]
