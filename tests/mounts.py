"""What is mounted, as this process sees it."""

from pathlib import Path

from cvfs.fuse.mountinfo import parse_mounts


def mount_points(below: Path = Path("/"), kind: str = "") -> list[Path]:
    """The mount points below a directory, of file systems whose type begins with `kind`; deepest first."""
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_bytes())
    chosen = [mount.directory for mount in mounts if mount.kind.startswith(kind) and below in mount.directory.parents]
    return sorted(chosen, reverse=True)
