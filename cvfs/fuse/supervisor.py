"""The supervisor of one mount: it holds the descriptors, and has workers started that do the rest.

It never touches a repository, so there is little that could end it. What a worker has to leave to the next one, it
gives to the supervisor. When a worker dies, the kernel is told to queue again what that one had read and not answered
(RESEND, Linux 6.9), or where it cannot, the mount is given up and made anew; while no worker can be had, the supervisor
itself answers EIO, so that nobody hangs.

Workers are forked from a *template*: a process that has imported all the code and does nothing else. A replacement
is there in some ten milliseconds so; after a reload there is a new template, with the code that is then installed.
"""

import logging
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from cvfs.fuse import link
from cvfs.fuse.crew import END_S, Crew
from cvfs.fuse.held import Held
from cvfs.fuse.link import LISTENER, Message
from cvfs.fuse.processes import STOP_SIGNALS, Template, WorkerProcess
from cvfs.fuse.succession import Succession
from cvfs.fuse.supervision import Vigil

log = logging.getLogger(__name__)


class Surroundings(NamedTuple):
    """What a supervisor does with the world around it.

    `new_template` starts one, with the code that is installed now. `started(message)` is called when the mount can be
    used, with what the first worker says of it; `failed(error)` if it will never be. `alive()` is called now and then
    while the mount is served and all who do that answer. `unmount(point, device, is_connected)` takes that mount away
    where no worker can.
    """

    new_template: Callable[[], Template]
    started: Callable[[Message], None]
    failed: Callable[[str], None]
    alive: Callable[[], None]
    unmount: Callable[[str, str, bool], None]


class Supervisor:
    """Has `count` workers serve one mount. The first is forked from `template`."""

    def __init__(self, surroundings: Surroundings, template: Template, count: int, held: Held, vigil: Vigil) -> None:
        self._around, self._held, self._vigil = surroundings, held, vigil
        self._crew = Crew(surroundings.new_template, template, count, held)
        self._succession = Succession(self._crew, held, self._fail, lambda: self._ending or self._status is not None)
        self._ending = False
        self._end_at = 0.0
        self._status: int | None = None

    def run(self) -> int:
        """Serve until the mount is gone; the exit status."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda number, frame: None)
        self._succession.start([0])
        self._reap()  # a template may have died before anybody listened
        while self._status is None:
            self._wait(reader)
            self._tend(time.monotonic())
        if self._held.mounted:
            point, device = self._held.mounted
            self._around.unmount(point, device, self._held.is_connected)
        self._crew.close()
        self._held.let_mount_go()
        self._held.remove_files()
        return self._status

    # Events

    def _wait(self, signals: int) -> None:
        """Handle what happens next."""
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        senders = {one.socket.fileno(): one for one in self._crew.senders()}
        for number in senders:
            poll.register(number, select.POLLIN)
        device = self._held.device
        if device is not None and (self._is_refusing or self._vigil.is_resting):
            poll.register(device, select.POLLIN)
        for number, _ in poll.poll(self._patience_ms()):
            if number == signals:
                self._take_signals(os.read(signals, 64))
            elif number == device:
                self._take_request()
            elif senders[number] in self._crew.senders():
                self._take_message(senders[number])  # else it was lost just now

    def _patience_ms(self) -> float | None:
        """Until the next deadline of any kind; None while there is none."""
        due = [*self._succession.due_at()]
        if self._succession.is_started:
            due += filter(None, [self._vigil.due_at([worker.silent_since for worker in self._crew.serving])])
        if self._end_at:
            due.append(self._end_at)
        return max(0.0, min(due) - time.monotonic()) * 1000 + 1 if due else None

    def _take_signals(self, numbers: bytes) -> None:
        wishes = [number for number in STOP_SIGNALS if number in numbers]
        if wishes:
            for worker in [*self._crew.workers]:  # who uses the mount already may not know more of it than we do
                self._hear_out(worker)
            log.info("%s: unmounting", wishes[0].name)
            self._end_soon()
        if signal.SIGCHLD in numbers:
            self._reap()

    def _reap(self) -> None:
        """Templates are children; so is the command that a mount in the foreground was asked for by."""
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                for template in [one for one in self._crew.templates if one.pid == pid]:
                    self._succession.lose_template(template)
        except ChildProcessError:
            return

    def _take_message(self, sender: WorkerProcess | Template) -> None:
        try:
            message = link.receive(sender.socket)
        except BlockingIOError:
            return
        if isinstance(sender, Template):
            self._take_news(sender, message)
        elif message is None:
            sender.closed = True
            if sender.template.gone:
                self._succession.lose(sender, None)
        else:
            sender.silent_since = None
            handler = _HANDLERS.get(message["type"])
            if handler is not None:  # a worker may have newer code than this process, and more to say
                handler(self, sender, message)

    def _hear_out(self, worker: WorkerProcess) -> None:
        """What it said before now counts."""
        while worker.has_more_to_say:
            self._take_message(worker)

    def _take_news(self, template: Template, message: Message | None) -> None:
        """The template says that a worker has begun, or ended; or nothing any more."""
        if message is None:
            template.gone = True
            return
        workers = [worker for worker in self._crew.workers if worker.template is template]
        if message["type"] == "ended":
            for worker in [one for one in workers if one.pid == message["pid"]]:
                self._hear_out(worker)
                self._succession.lose(worker, message["status"])
            return
        begun = next(worker for worker in workers if not worker.pid)  # in the order in which they were asked for
        if message["type"] == "forked":
            begun.pid = message["pid"]
        else:
            self._succession.lose(begun, None)

    def _take_request(self) -> None:
        """Something is asked of the mount that nobody can answer, or that nobody watched for."""
        if not self._is_refusing:
            self._watch()
        elif not self._held.refuse_request():
            self._status = 0

    @property
    def _is_refusing(self) -> bool:
        """Nobody can answer. INIT is left to the worker that has just mounted: refused, it would be the mount's end."""
        return self._succession.is_hopeless and self._held.is_initialized

    def _watch(self) -> None:
        """From now on ask the workers whether they are alive, until nothing is asked of the mount any more."""
        self._vigil.begin(time.monotonic())
        for worker in self._crew.workers:
            worker.silent_since, worker.idle = None, False

    # What workers say

    def _hold(self, worker: WorkerProcess, message: Message) -> None:
        self._held.add(message["descriptors"])
        if LISTENER in message["descriptors"]:  # who takes the place of `worker` was begun with the one before
            self._crew.hand_over({"type": "listen"}, {LISTENER: self._held.descriptors[LISTENER]}, worker)

    def _remember(self, worker: WorkerProcess, message: Message) -> None:
        self._held.state |= message["state"]

    def _ready(self, worker: WorkerProcess, message: Message) -> None:
        if self._succession.admit(worker):
            self._watch()

    def _answered(self, worker: WorkerProcess, message: Message) -> None:
        worker.has_answered = True

    def _first_start(self, worker: WorkerProcess, message: Message) -> None:
        if not self._succession.is_started:
            self._succession.is_started = True
            for template in self._crew.templates:
                link.send(template.socket, {"type": "started"})
            self._around.started(message)

    def _failure(self, worker: WorkerProcess, message: Message) -> None:
        if self._succession.is_started:
            log.error("a worker cannot start: %s", message["error"])
        else:
            self._fail(message["error"])

    def _pong(self, worker: WorkerProcess, message: Message) -> None:
        worker.take_pong(message)
        if all(other.idle for other in self._crew.serving):
            self._vigil.rest()

    def _relay(self, worker: WorkerProcess, message: Message) -> None:
        """To the other workers: an interrupt for a request that one of them has, a new revision.

        A worker that wants a receipt is told which of them answer the kernel: it may have to wait for those.
        """
        self._crew.send(message["message"], but=worker)
        if "receipt" in message:
            others = [one for one in self._crew.workers if one is not worker and one.phase in ("serving", "ending")]
            receipt = {"receipt": message["receipt"], "to": [other.pid for other in others]}
            link.send(worker.socket, {"type": "relayed", **receipt})

    def _unmounted(self, worker: WorkerProcess, message: Message) -> None:
        self._status = 0

    def _reload(self, worker: WorkerProcess, message: Message) -> None:
        self._succession.reload()

    # Time

    def _tend(self, now: float) -> None:
        """Do what is due."""
        self._succession.tend(now)
        if self._succession.is_started:
            self._look_after(now)
        if self._end_at and now >= self._end_at:
            self._status = 0

    def _look_after(self, now: float) -> None:
        """Ask the workers whether they are alive, replace those that are not, and tell of those that are."""
        for worker in self._crew.serving:
            if self._vigil.is_hung(worker.silent_since, now):
                log.error("worker %d does not answer", worker.pid)
                self._succession.give_up(worker)
        serving, ticks = self._crew.serving, self._vigil.take_tick(now)
        if ticks and serving and all(worker.silent_since is None for worker in serving):
            self._around.alive()
        if self._vigil.take_ping(now) or ticks:
            for worker in serving:
                worker.ping()

    # The end

    def _fail(self, error: str) -> None:
        self._around.failed(error)
        self._status = 1

    def _end_soon(self) -> None:
        """Take the mount away, and wait some time for those who use it."""
        self._ending = True
        self._end_at = time.monotonic() + END_S
        if not self._succession.is_started:
            self._status = 1
        elif not self._crew.send({"type": "unmount"}):
            self._status = 0


_HANDLERS: Final[dict[str, Callable[[Supervisor, WorkerProcess, Message], None]]] = {
    "hold": Supervisor._hold,
    "remember": Supervisor._remember,
    "ready": Supervisor._ready,
    "answered": Supervisor._answered,
    "started": Supervisor._first_start,
    "failed": Supervisor._failure,
    "pong": Supervisor._pong,
    "relay": Supervisor._relay,
    "unmounted": Supervisor._unmounted,
    "reload": Supervisor._reload,
}
