"""A command and the server that it asks for a mount: what they say to each other, and how the server leaves its caller.

In the background the server is a child of the command, which waits until the mount can be used, and for the end of
what failed, so that nothing is left of it. In the foreground the command is the child.

The server stays in the process group of its caller until the mount is there: an automounter exempts its own group from
waiting for the mount that it makes.
"""

import logging
import os
import select
import signal
import socket
from typing import Any

from cvfs.errors import MountError
from cvfs.fuse import link

log = logging.getLogger(__name__)

DEADLINE_S = 60.0
"""For the server to say anything. Its own deadlines are far shorter: this is for one that hangs."""

_END_DEADLINE_S = 10.0


class Caller:
    """What the server knows of the command that asks it. `log` is what it shall log to, from `receive` on; None: to
    what it has. `command` is the process that asks, where that is a child: in the foreground."""

    def __init__(self, connection: socket.socket, command: int | None) -> None:
        self._connection, self._command = connection, command
        self.log: int | None = None

    def receive(self) -> str | None:
        """The request; None if the command wants nothing after all."""
        message = link.receive(self._connection)
        if message is None:
            return None
        self.log = message["descriptors"].get("log")
        if self.log is not None:
            settle(self.log)
        text: str = message["request"]
        return text

    def report(self, warnings: list[str]) -> None:
        """The mount can be used: the caller may go on, and what happens to it is no business of ours any more.

        Where the caller was killed nobody would know of the mount: then this process is told to end, as by anybody.
        """
        if not self._say({"warnings": warnings}):
            log.error("who asked for the mount is gone: it is taken away")
            os.kill(os.getpid(), signal.SIGTERM)
        if self._command is None:
            os.setsid()

    def fail(self, error: str) -> None:
        """There will be no mount."""
        self._say({"error": error})
        self.wait()

    def wait(self) -> int:
        """The exit status of a command that has nothing to wait for any more, 0 if nobody but it wants to know."""
        if self._command is None:
            return 0
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self._command, 0)[1])
        except ChildProcessError:
            return 1

    def end(self) -> None:
        """The server is about to end; if it has said nothing yet, it was told to end too early."""
        if self._connection.fileno() >= 0:
            self.fail("it was ended before it could be used")

    def _say(self, message: dict[str, Any]) -> bool:
        """Whether there is still somebody to hear it."""
        heard = link.send(self._connection, message)
        self._connection.close()
        return heard


def settle(log: int) -> None:
    """Leave the caller's directory, terminal and output."""
    null = os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    os.close(null)
    os.chdir("/")
    os.umask(0o077)


def ask(connection: socket.socket, request: str, log: int | None) -> list[str]:
    """Have the server mount; its warnings when the mount can be used. Raises MountError with what went wrong."""
    if len(request) > link.MAX_BYTES // 2:
        raise MountError("the settings of this mount are too large to hand on: shorten uid_map and gid_map")
    link.send(connection, {"type": "mount", "request": request}, {} if log is None else {"log": log})
    if not select.select([connection], [], [], DEADLINE_S)[0]:
        raise MountError(f"the mount did not become ready within {DEADLINE_S:g} s; see the log")
    answer = link.receive(connection)
    if answer is None:
        raise MountError("the process that should serve the mount died; see the log")
    if "error" in answer:
        raise MountError(answer["error"])
    warnings: list[str] = answer["warnings"]
    return warnings


def end(pid: int) -> None:
    """Wait for a child to end, which it does by itself after an error; after a while make it."""
    for number, patience_s in ((signal.SIGTERM, _END_DEADLINE_S), (signal.SIGKILL, 1.0)):
        if _has_ended(pid, 0.5):
            return
        os.kill(pid, number)
        if _has_ended(pid, patience_s):
            return


def _has_ended(pid: int, patience_s: float) -> bool:
    process = os.pidfd_open(pid)
    try:
        if not select.select([process], [], [], patience_s)[0]:
            return False
    finally:
        os.close(process)
    os.waitpid(pid, 0)
    return True
