"""What --exclude leaves out of a tree."""

import os
import re

from cvfs.errors import ConfigError
from publisher.source.tree import Excluded


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
