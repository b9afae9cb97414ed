"""mount.cvfs: what mount(8), systemd and autofs run for a file system of type cvfs.

    mount.cvfs SPEC DIRECTORY [-sfnv] [-o OPTIONS] [-t TYPE]

SPEC is the name of a configured repository, or an address. `cvfs setup` installs it as /sbin/mount.cvfs, and as
/sbin/mount.fuse.cvfs, which is what mount(8) runs for a mount that is there already.
"""

import getopt
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from cvfs import cli
from cvfs.streams import complete_streams

_WRONG_USAGE = 1
_FAILED = 32
"""Exit statuses, as mount(8) has them."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Mount, and return when the mount can be used."""
    complete_streams()
    try:
        options, words = getopt.gnu_getopt(list(sys.argv[1:] if arguments is None else arguments), "sfnvo:t:N:")
        if len(words) != 2 or any(name == "-N" for name, _ in options):
            raise getopt.GetoptError("wanted SPEC DIRECTORY [-sfnv] [-o OPTIONS] [-t TYPE]")
    except getopt.GetoptError as error:
        sys.stderr.write(f"mount.cvfs: error: {error}\n")
        sys.exit(_WRONG_USAGE)
    if any(name == "-f" for name, _ in options):
        sys.exit(0)  # "fake": mount(8) does everything but this
    spec, directory = words
    given = [word for name, value in options if name == "-o" for word in value.split(",")]
    if any(name == "-s" for name, _ in options):
        given = _known(given)
    # mount(8) says rw where nothing is said.
    wanted = ",".join(word for word in given if word != "rw")
    try:
        cli.main(["mount", "-o", wanted, "--", spec, directory], "mount.cvfs")
    except SystemExit as end:
        sys.exit(end.code and _FAILED)


def _known(words: Iterable[str]) -> list[str]:
    """Those that mean something to cvfs: mount(8)'s -s is to overlook all others."""
    from cvfs.mount.request import is_option

    return [word for word in words if is_option(word)]


if __name__ == "__main__":
    main()
