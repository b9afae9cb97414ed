"""Where a publisher keeps what it remembers, and what it leaves out."""

import os
import re
from pathlib import Path

from cvfs.errors import ConfigError
from cvfs.format.blob import digest
from publisher.listing import Excluded


def state_directory(location: str, repository: str) -> Path:
    """The default place for what is remembered of a store: never inside of it, it belongs to this host."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    base = Path("/var/cache") if os.geteuid() == 0 else caches
    where = digest(os.fsencode(os.path.realpath(location))).hex()[:16]
    return base / "cvfs-publisher" / f"{repository}-{where}"


def exclusion(patterns: tuple[str, ...]) -> Excluded | None:
    """What the patterns leave out; they mean what they mean in a .gitignore at the top of the tree."""
    if not patterns:
        return None
    import pathspec  # slow to import, and seldom needed

    try:
        spec = pathspec.GitIgnoreSpec.from_lines(patterns)
    except (ValueError, re.error) as error:
        raise ConfigError(f"not a pattern: {error}") from error
    return lambda path, is_directory: spec.match_file(os.fsdecode(path) + ("/" if is_directory else ""))
