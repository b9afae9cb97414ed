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
