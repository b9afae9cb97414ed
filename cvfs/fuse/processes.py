"""The processes of a supervised mount, as the supervisor knows them: templates, and the workers forked from them."""

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Sequence

from cvfs.fuse import link
from cvfs.fuse.link import Message

log = logging.getLogger(__name__)


class Template:
    """A process that workers are forked from. `gone`: it has ended, or is to."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid, self.socket = pid, connection
        self.gone = False

    @classmethod
    def spawn(cls, command: Sequence[str], environment: dict[str, str]) -> "Template":
        """Start one with the code that is installed now; `command` gets the number of its socket appended."""
        ours, theirs = link.pair()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            return cls(os.posix_spawn(command[0], [*command, str(theirs.fileno())], environment), ours)

    def fork(self) -> socket.socket:
        """A new worker; the connection to it."""
        ours, theirs = link.pair()
        with theirs:
            link.send(self.socket, {"type": "fork"}, {"link": theirs.fileno()})
        return ours

    def retire(self) -> None:
        """It ends when it notices."""
        self.gone = True
        self.socket.close()


class Worker:
    """One worker process. `phase`: starting, serving, or ending; `slot` is which of the channels it serves.

    `silent_since`: since when a question has been unanswered. `doomed`: it is being killed for what it did not do.
    """

    def __init__(self, slot: int, template: Template, connection: socket.socket) -> None:
        self.slot, self.template, self.socket = slot, template, connection
        self.pid = 0
        self.enter("starting")
        self.silent_since: float | None = None
        self.asked = -1
        self.idle = self.closed = self.doomed = False

    def enter(self, phase: str) -> None:
        self.phase, self.since = phase, time.monotonic()

    def ping(self) -> None:
        if self.silent_since is None:
            self.silent_since = time.monotonic()
        link.send(self.socket, {"type": "ping"})

    def take_pong(self, message: Message) -> None:
        """One that was asked nothing since the last time, and works on nothing, needs no watching."""
        self.idle = message["under_way"] == 0 and message["asked"] == self.asked
        self.asked = message["asked"]

    def finish(self) -> None:
        """Have it answer what it has begun, and end."""
        self.enter("ending")
        link.send(self.socket, {"type": "finish"})

    def kill(self) -> None:
        self.doomed = self.phase != "ending"
        try:
            os.kill(self.pid or self.template.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("worker %d has just ended", self.pid)

    @property
    def has_more_to_say(self) -> bool:
        return not self.closed and bool(select.select([self.socket], [], [], 0)[0])


def is_killed(status: int) -> bool:
    """Whether somebody ended a process that wait(2) says this of, rather than it itself."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def describe(status: int | None) -> str:
    """What wait(2) says of an end."""
    if status is None:
        return "cause unknown"
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"


def wait_for_ends(pids: Iterable[int], patience_s: float) -> None:
    """Return when none of these processes is there any more; those that are after `patience_s` are killed."""
    deadline = time.monotonic() + patience_s
    for pid in pids:
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if not select.select([process], [], [], max(0.0, deadline - time.monotonic()))[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(process)
