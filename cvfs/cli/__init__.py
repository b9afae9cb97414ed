"""The command line `cvfs`. Nothing is imported here but what it takes to begin."""

import sys
from collections.abc import Sequence
from typing import NoReturn

from cvfs.streams import complete_streams


def main(arguments: Sequence[str] | None = None, program: str = "cvfs") -> NoReturn:
    """The entry point: never a traceback for a user's mistake. `arguments` are those of the process by default."""
    complete_streams()
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] != ["mount"]:
        _run(words, program, None)
    from cvfs.mount import ahead

    begun = ahead.begin(words[1:])
    try:
        _run(words, program, begun)
    finally:
        if begun is not None:
            begun.close()


def _run(words: list[str], program: str, begun: object) -> NoReturn:
    from cvfs import terminal
    from cvfs.cli.group import cli

    terminal.run(cli, program, words, begun)
