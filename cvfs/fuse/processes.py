"""The processes of a supervised mount, as the supervisor knows them: templates, and the workers forked from them."""

import errno
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Final

from cvfs.fuse import link
from cvfs.fuse.link import Message
from cvfs.fuse.supervision import Life

log = logging.getLogger(__name__)

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Each of them is a wish to have the mount taken away: in the foreground a terminal sends them to all processes of it,
SIGHUP when its window is closed."""


class Template:
    """A process that workers are forked from. `gone`: it has ended, or is to."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid, self.socket = pid, connection
        self.gone = False

    @classmethod
    def spawn(cls, command: Sequence[str], environment: dict[str, str]) -> "Template":
        """Start one with the code that is installed now; `command` gets the number of its socket appended.

        Raises OSError: there is no such interpreter any more, or no room for one more process.
        """
        ours, theirs = link.pair()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            try:
                return cls(os.posix_spawn(command[0], [*command, str(theirs.fileno())], environment), ours)
            except OSError:
                ours.close()
                raise

    def fork(self) -> socket.socket:
        """A new worker; the connection to it. Raises OSError: there can be none."""
        ours, theirs = link.pair()
        with theirs:
            if link.send(self.socket, {"type": "fork"}, {"link": theirs.fileno()}):
                return ours
        ours.close()
        raise BrokenPipeError(errno.EPIPE, "the process that workers are forked from does not listen")

    def retire(self) -> None:
        """It ends when it notices."""
        self.gone = True
        self.socket.close()


class WorkerProcess:
    """One worker process; `slot` is which of the channels it serves.

    `phase`: "starting"; "ready" to take over, when those it waits for are; "serving"; "ending", when it answers only
    what it has begun; "doomed", when it is being killed and counts no more, however long a disk keeps it from its end.
    `owes`: it may have read requests of the present mount, and not answered them. `has_answered`: some, at least.
    `silent_since`: since when a question has been unanswered.
    """

    def __init__(self, slot: int, template: Template, connection: socket.socket) -> None:
        self.slot, self.template, self.socket = slot, template, connection
        self.pid = 0
        self.enter("starting")
        self.silent_since: float | None = None
        self.asked = -1
        self.idle = self.closed = self.owes = self.has_answered = False

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

    def life(self, now: float, *, was_killed: bool) -> Life:
        """What it has done until now."""
        served_s = now - self.since if self.phase == "serving" else 0.0
        return Life(served_s, has_answered=self.has_answered, was_killed=was_killed)

    def begin(self) -> None:
        """It serves."""
        self.enter("serving")
        self.owes = True

    def finish(self) -> None:
        """Have it answer what it has begun, and end."""
        self.enter("ending")
        link.send(self.socket, {"type": "finish"})

    def kill(self) -> None:
        """Also if it is not there yet: then with its template."""
        self.enter("doomed")
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
