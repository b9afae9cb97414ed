"""The command line `cvfs-publisher`: a module for each command, and what they share."""

import gc
from typing import NoReturn

from cvfs import terminal
from cvfs.streams import complete_streams


def main() -> NoReturn:
    """The entry point: never a traceback for a user's mistake."""
    from publisher.cli.common import PROGRAM
    from publisher.cli.group import cli

    complete_streams()
    try:
        terminal.run(cli, PROGRAM)
    finally:
        gc.freeze()  # The interpreter would look for cycles in all that is loaded, 12 ms, to free it a moment later.
