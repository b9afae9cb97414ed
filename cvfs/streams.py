"""Standard input, output and error, which whoever starts a process may have closed.

Imports next to nothing: `cvfs mount` does this before all else.
"""

import os
import sys
from typing import Final

_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
"""By their descriptors."""


def complete_streams() -> None:
    """Have /dev/null where one of them is closed.

    Else the next file or socket would take its number, and be lost, or written into, by whatever means the stream.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        if not _is_open(number):
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
