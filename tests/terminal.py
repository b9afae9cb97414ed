"""A real terminal of 80 columns, and all that a command writes to it."""

import os
import pty
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

COLUMNS = 80
_DEADLINE_S = 40.0


def on_terminal(command: Sequence[str | bytes | Path], environment: Mapping[str, str]) -> str:
    """What a command writes whose stdin, stdout and stderr are a terminal. It must end well."""
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, COLUMNS))
    plain = {name: text for name, text in environment.items() if name not in ("COLUMNS", "NO_COLOR")}
    plain["TERM"] = "xterm-256color"
    with subprocess.Popen(command, env=plain, stdin=side, stdout=side, stderr=side) as process:
        os.close(side)
        written = _read_all(main)
        assert process.wait(_DEADLINE_S) == 0, written
    os.close(main)
    return written.decode()


def _read_all(descriptor: int) -> bytes:
    written = bytearray()
    while True:
        try:
            written += os.read(descriptor, 1 << 16)
        except OSError:  # EIO: the last writer has gone
            return bytes(written)
