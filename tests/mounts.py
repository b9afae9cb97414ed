"""What is mounted, as this process sees it, and what a host that uses cvfs has."""

from pathlib import Path

from cvfs.fuse.mountinfo import parse_mounts

USUAL_MOUNT = Path("/cvfs")
"""Where `cvfs run` and the unit of all mount; a host that uses cvfs has it."""

STATE_OF_PUBLISHER = Path("/var/cache/cvfs-publisher")
"""Root's, where no other is chosen."""

OF_THIS_HOST = (
    *map(Path, ("/etc/cvfs", "/etc/cvfs-publisher", "/var/cache/cvfs", "/var/lib/cvfs", "/run/cvfs")),
    STATE_OF_PUBLISHER,
)
"""What such a host has configured and stored: none of a test's business."""


def mount_points(below: Path = Path("/"), kind: str = "") -> list[Path]:
    """The mount points below a directory, of file systems whose type begins with `kind`; deepest first."""
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_bytes())
    chosen = [mount.directory for mount in mounts if mount.kind.startswith(kind) and below in mount.directory.parents]
    return sorted(chosen, reverse=True)
