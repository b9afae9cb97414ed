"""Where what is remembered of a store is kept."""

import os
from pathlib import Path

from cvfs.format.blob import digest


def state_directory(location: str, repository: str) -> Path:
    """The default place for what is remembered of a store: never inside of it, it belongs to this host."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    base = Path("/var/cache") if os.geteuid() == 0 else caches
    where = digest(os.fsencode(os.path.realpath(location))).hex()[:16]
    return base / "cvfs-publisher" / f"{repository}-{where}"


def make_state_directory(path: Path) -> None:
    """Make `path`, and what is missing above it, for its owner alone, whatever the umask: who can write there can say
    what a tree looks like. Raises OSError."""
    for directory in (*reversed(path.parents), path):
        if not directory.is_dir():
            directory.mkdir(mode=0o700, exist_ok=True)
