"""What `cvfs mount` begins before it has looked at its own arguments, because it takes longest: importing.

One process becomes two: the *command*, which reads options and settings, and the *server*, which meanwhile imports what
will serve the mount, and waits for the command to say what is to be mounted. With the channel the server is the
supervisor, and forks the template before it imports anything: that has most to import, and all others wait for it. With
pyfuse3 the server serves by itself. In the background it is a child of the command, in the foreground it is the process
that was started, so that a service manager knows it.

Imports as little as can be: all that stands here is paid for before anything can be done at once.
"""

import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from cvfs.fuse import link
from cvfs.fuse.engines import choose_engine
from cvfs.mount.template import fork_template


class BegunServer:
    """A server that has been begun, with process id `pid` if it is in the background."""

    def __init__(self, pid: int | None, connection: socket.socket) -> None:
        self.foreground = pid is None
        self._pid, self._connection = pid, connection

    def ask(self, request: str, log: int | None) -> list[str]:
        """Have the server mount; its warnings. Raises MountError; then the server has ended."""
        from cvfs.mount.daemon import ask

        warnings = ask(self._connection, request, log)
        self._pid = None  # it lives on by itself
        return warnings

    def close(self) -> None:
        """Let the server go, and if it serves no mount, wait for its end."""
        self._connection.close()
        if self._pid is not None:
            from cvfs.mount.daemon import end

            end(self._pid)
            self._pid = None


def begin(arguments: Sequence[str]) -> BegunServer | None:
    """Begin the server that these arguments of `cvfs mount` mean. Returns in the command only.

    None if they ask for help.
    """
    if {"-h", "--help"} & {*arguments}:
        return None
    # In all processes, until each has what it needs: imports make no garbage, and looking for it costs them a tenth of
    # their time.
    gc.disable()
    engine, foreground = engine_in(arguments), any(map(is_foreground, arguments))
    ours, theirs = link.pair()
    child = os.fork()
    if (child == 0) != foreground:
        ours.close()
        _serve(engine, theirs, child if foreground else None)
    theirs.close()
    return BegunServer(None if foreground else child, ours)


def engine_in(arguments: Sequence[str]) -> str:
    """As far as it can be seen; a configuration may say otherwise."""
    for index, word in enumerate(arguments):
        if word == "--engine":
            return "".join(arguments[index + 1 : index + 2])
        if word.startswith("--engine="):
            return word.partition("=")[2]
    return os.environ.get("CVFS_ENGINE", "auto")


def is_foreground(word: str) -> bool:
    """Of short options, only -f can be followed by others."""
    return word == "--foreground" or (word[:1] == "-" and word[1:2] not in ("-", "o") and "f" in word)


def _serve(engine: str, connection: socket.socket, command: int | None) -> NoReturn:
    """Be the server, to the end. `command` is the child that asks, if the server is the process that was started."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command hears it, and decides, until there is a mount
        if command is None:
            _close_inherited(connection.fileno())
        forked = fork_template(connection) if choose_engine(engine) == "channel" else None
        from cvfs.mount.server import serve

        status = serve(forked, connection, command)
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _close_inherited(keep: int) -> None:
    """Whoever waits for the end of what the caller has open must not wait for a mount's."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number > 2 and number != keep:
            with contextlib.suppress(OSError):
                os.close(number)
