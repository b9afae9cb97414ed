"""The supervisor of one mount: it holds the descriptors, and has workers started that do the rest.

It never touches a repository, so there is little that could end it. What a worker has to leave to the next one, it
gives to the supervisor: descriptors by name, and a state that the supervisor does not look into. When a worker dies,
the kernel is told to queue again what that one had read and not answered (RESEND); while no worker can be had, the
supervisor itself answers EIO, so that nobody hangs.

Workers are forked from a *template*: a process that has imported all the code and does nothing else. A replacement
is there in some ten milliseconds so; after a reload there is a new template, with the code that is then installed.
"""

import logging
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Final

from cvfs.fuse import link
from cvfs.fuse.link import Message

log = logging.getLogger(__name__)

START_DEADLINE_S: Final = 60.0
"""For a worker to be ready. Opening a repository has far shorter deadlines of its own."""
PATIENCE_S: Final = 20.0
"""For how long callers wait while there is no worker; then they get EIO."""
DRAIN_S: Final = 5.0
"""For a worker that is to end: what it has begun is then given to another."""
END_S: Final = 3.0
"""For those who still use the mount when it is to end: after a SIGTERM."""
SHORT_LIFE_S: Final = 1.0
BACKOFF_S: Final = (0.1, 30.0)
FAILURES: Final = 3
"""Workers that died by themselves soon after their start, one after the other, before callers get EIO."""

FUSE: Final = "fuse"
"""The name under which descriptors of /dev/fuse are held: "fuse0", "fuse1"..."""

LISTENER: Final = "control"
"""The name of the listening control socket."""

_BACKLOG: Final = 16
_IN_HEADER: Final = struct.Struct("=IIQ")
_OUT_HEADER: Final = struct.Struct("=IiQ")
_NOTIFY_RESEND: Final = 7
_UNANSWERED: Final = (2, 36, 42)
_EIO, _ENODEV = 5, 19
_BUFFER_BYTES: Final = 128 << 10


class Template:
    """The process that workers are forked from."""

    def __init__(self, command: Sequence[str]) -> None:
        self.socket, theirs = link.pair()
        os.set_inheritable(theirs.fileno(), True)
        self.pid = os.posix_spawn(command[0], [*command, str(theirs.fileno())], os.environ)
        theirs.close()
        self.gone = False

    def fork(self) -> socket.socket:
        """A new worker; the connection to it."""
        ours, theirs = link.pair()
        link.send(self.socket, {"type": "fork"}, {"link": theirs.fileno()})
        theirs.close()
        return ours


class Worker:
    """One worker process. `phase`: starting, ready, serving, or ending; `slot` is which of the channels it serves."""

    def __init__(self, slot: int, template: Template, connection: socket.socket) -> None:
        self.slot, self.template, self.socket = slot, template, connection
        self.pid = 0
        self.phase = "starting"
        self.since = time.monotonic()
        self.heard = self.since
        self.asked = -1
        self.idle = False
        self.closed = False
        self.doomed = False


class Supervisor:
    """`command` starts a template (the number of its socket is appended).

    `started(message)` is called when the mount can be used, with what the first worker says of it; `failed(error)` if
    it will never be. `unmount` is what takes the mount away where no worker can.
    """

    def __init__(
        self,
        command: Sequence[str],
        workers: int,
        *,
        started: Callable[[Message], None],
        failed: Callable[[str], None],
        unmount: Sequence[str],
        ping_s: float = 5.0,
        hang_s: float = 10.0,
    ) -> None:
        self._command, self._count, self._unmount = list(command), workers, list(unmount)
        self._started, self._failed = started, failed
        self._ping_s, self._hang_s = ping_s, hang_s
        self._held: dict[str, int] = {}
        self._state: Message = {}
        self._template: Template | None = None
        self._former: Template | None = None
        self._templates: list[Template] = []
        self._workers: list[Worker] = []
        self._is_started = self._ending = False
        self._failures = 0
        self._generation = self._restarts = 0
        self._retry_at = 0.0
        self._down_since = time.monotonic()
        self._broken = False
        self._watching = True
        self._next_ping = 0.0
        self._end_at = 0.0
        self._status: int | None = None

    def run(self) -> int:
        """Serve until the mount is gone; the exit status."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda number, frame: None)
        self._start_missing()
        while self._status is None:
            self._wait(reader)
            self._tend()
        self._clean_up()
        return self._status

    # Events

    def _wait(self, signals: int) -> None:
        """Handle what happens next."""
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        sockets: dict[int, Worker | Template] = {one.socket.fileno(): one for one in self._templates if not one.gone}
        sockets |= {one.socket.fileno(): one for one in self._workers if not one.closed}
        for number in sockets:
            poll.register(number, select.POLLIN)
        device = self._held.get(FUSE + "0", -1)
        if device >= 0 and (self._broken or not self._watching):
            poll.register(device, select.POLLIN)
        for number, event in poll.poll(self._patience_ms()):
            if number == signals:
                self._take_signals(os.read(signals, 64))
            elif number == device:
                self._take_request(device, event)
            elif sockets[number] in self._workers or sockets[number] in self._templates:
                self._take_message(sockets[number])  # else it was lost just now

    def _patience_ms(self) -> float | None:
        """Until the next deadline of any kind; None while there is none."""
        now = time.monotonic()
        due = [worker.since + START_DEADLINE_S for worker in self._workers if worker.phase == "starting"]
        due += [worker.since + DRAIN_S for worker in self._workers if worker.phase == "ending"]
        if self._missing():
            due.append(self._retry_at)
        if self._is_down() and not self._broken:
            due.append(self._down_since + PATIENCE_S)
        if self._watching and self._is_started:
            due.append(self._next_ping)
        if self._end_at:
            due.append(self._end_at)
        return max(0.0, min(due) - now) * 1000 + 1 if due else None

    def _take_signals(self, numbers: bytes) -> None:
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            log.info("%s: unmounting", signal.Signals(max({*numbers} & {signal.SIGTERM, signal.SIGINT})).name)
            self._end_soon()
        if signal.SIGCHLD in numbers:
            self._reap()

    def _reap(self) -> None:
        for template in [*self._templates]:
            if os.waitpid(template.pid, os.WNOHANG)[0]:
                self._lose_template(template)

    def _take_message(self, sender: Worker | Template) -> None:
        try:
            message = link.receive(sender.socket)
        except BlockingIOError:
            return
        if message is None:
            if isinstance(sender, Worker):
                sender.closed = True
                if sender.template.gone:
                    self._lose(sender, None)
            else:
                sender.gone = True
            return
        if isinstance(sender, Template):
            self._take_news(sender, message)
        else:
            sender.heard = time.monotonic()
            _HANDLERS[message["type"]](self, sender, message)

    def _take_news(self, template: Template, message: Message) -> None:
        """The template says that a worker has begun, or ended."""
        if message["type"] == "forked":
            next(w for w in self._workers if w.template is template and not w.pid).pid = message["pid"]
            return
        for worker in [*self._workers]:
            if worker.template is template and worker.pid == message["pid"]:
                self._drain(worker)
                self._lose(worker, message["status"])

    def _drain(self, worker: Worker) -> None:
        """What a worker said before it ended counts."""
        while not worker.closed and select.select([worker.socket], [], [], 0)[0]:
            self._take_message(worker)

    def _take_request(self, device: int, event: int) -> None:
        if not self._broken:
            self._watch()
            return
        try:
            data = os.read(device, _BUFFER_BYTES)
            _, opcode, unique = _IN_HEADER.unpack_from(data)
            if opcode not in _UNANSWERED:
                os.write(device, _OUT_HEADER.pack(_OUT_HEADER.size, -_EIO, unique))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno == _ENODEV:
                self._status = 0

    def _watch(self) -> None:
        """From now on ask the workers whether they are alive, until nothing is asked of the mount any more."""
        self._watching = True
        self._next_ping = time.monotonic() + self._ping_s
        for worker in self._workers:
            worker.heard, worker.idle = time.monotonic(), False

    # What workers say

    def _hold(self, worker: Worker, message: Message) -> None:
        self._held |= message["descriptors"]
        if LISTENER in message["descriptors"]:
            # Whoever connects sees the credentials of the last one who listened: the process that stays.
            with socket.socket(fileno=os.dup(self._held[LISTENER])) as listener:
                listener.listen(_BACKLOG)

    def _remember(self, worker: Worker, message: Message) -> None:
        self._state |= message["state"]

    def _ready(self, worker: Worker, message: Message) -> None:
        worker.phase, worker.since = "serving", time.monotonic()
        for other in self._workers:
            if other.slot == worker.slot and other is not worker and other.phase == "serving":
                self._finish(other)
        if all(other.template is worker.template for other in self._workers if other.phase == "serving"):
            self._former = None
        self._broken = False
        self._watch()
        link.send(worker.socket, {"type": "go", "generation": self._generation, "restarts": self._restarts})

    def _first_start(self, worker: Worker, message: Message) -> None:
        if not self._is_started:
            self._is_started = True
            self._started(message)

    def _failure(self, worker: Worker, message: Message) -> None:
        log.error("a worker cannot start: %s", message["error"])
        if not self._is_started:
            self._failed(message["error"])
            self._status = 1

    def _pong(self, worker: Worker, message: Message) -> None:
        """A worker that was asked nothing since the last time, and works on nothing, needs no watching."""
        worker.idle = message["under_way"] == 0 and message["asked"] == worker.asked
        worker.asked = message["asked"]
        if all(other.idle for other in self._workers):
            self._watching = False

    def _relay(self, worker: Worker, message: Message) -> None:
        """To the other workers: an interrupt for a request that one of them has, a new revision."""
        for other in self._workers:
            if other is not worker:
                link.send(other.socket, message["message"])

    def _unmounted(self, worker: Worker, message: Message) -> None:
        self._status = 0

    def _reload(self, worker: Worker, message: Message) -> None:
        """Start a worker with a new template beside each that serves; those end when the new ones are ready."""
        if any(other.phase == "starting" for other in self._workers):
            return
        log.info("reloading")
        self._generation += 1
        self._former, self._template = self._template, None
        for slot in range(self._count):
            self._start(slot)

    # Workers

    def _missing(self) -> list[int]:
        """The slots that no worker serves or will serve."""
        if self._ending:
            return []
        wanted = self._count if self._is_started else 1
        present = {worker.slot for worker in self._workers if worker.phase != "ending"}
        return [slot for slot in range(wanted) if slot not in present]

    def _is_down(self) -> bool:
        return not any(worker.phase in ("serving", "ending") for worker in self._workers)

    def _start_missing(self) -> None:
        for slot in self._missing():
            self._start(slot)

    def _start(self, slot: int) -> None:
        if self._template is None:
            self._template = Template(self._command)
            self._templates.append(self._template)
        worker = Worker(slot, self._template, self._template.fork())
        self._workers.append(worker)
        link.send(worker.socket, self._take(slot), self._held)

    def _take(self, slot: int) -> Message:
        """What a worker is told first."""
        return {"type": "take", "slot": slot, "count": self._count, "state": self._state, "supervisor": os.getpid()}

    def _finish(self, worker: Worker) -> None:
        worker.phase, worker.since = "ending", time.monotonic()
        link.send(worker.socket, {"type": "finish"})

    def _lose(self, worker: Worker, status: int | None) -> None:
        """A worker has ended. `status` is that of wait(2); None: nobody knows."""
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        if status is None and worker.pid:
            self._kill(worker)  # one whose template is gone may still live
        worker.socket.close()
        self._retire_templates()
        if self._status is not None or self._ending:
            return
        if not self._is_started:
            self._failed("the process that should serve the mount died; see the log")
            self._status = 1
            return
        self._resend()
        if worker.phase != "ending":
            self._restarts += 1
            log.warning("worker %d died (%s) while %s", worker.pid, describe(status), worker.phase)
            self._tell_of(worker, status)
            self._judge(worker, status)
        if self._is_down():
            self._down_since = time.monotonic()

    def _retire_templates(self) -> None:
        """After a reload: the one whose workers have all ended is not needed any more."""
        used = {worker.template for worker in self._workers} | {self._template, self._former}
        for template in self._templates:
            if template not in used and not template.gone:
                template.gone = True
                template.socket.close()

    def _judge(self, worker: Worker, status: int | None) -> None:
        """Decide when the next is started. Who was killed from outside is replaced at once, as often as it takes."""
        now = time.monotonic()
        lived_s = now - worker.since if worker.phase == "serving" else 0.0
        # Nobody knows how those ended whose template is gone; without a pid they never began, for the template failed.
        killed = bool(worker.pid) if status is None else _is_killed(status)
        if worker.doomed or (not killed and lived_s < SHORT_LIFE_S):
            self._failures += 1
            first_s, longest_s = BACKOFF_S
            self._retry_at = now + min(first_s * 2 ** (self._failures - 1), longest_s)
            if self._failures >= FAILURES and self._is_down() and not self._broken:
                self._be_broken()
        else:
            self._failures, self._retry_at = 0, now

    def _tell_of(self, worker: Worker, status: int | None) -> None:
        """A worker that was to take over from another did not come up: that one goes on."""
        for other in self._workers:
            if other.slot == worker.slot and other.phase == "serving":
                self._template, self._former = self._former or self._template, None
                problem = f"the new worker did not start ({describe(status)}); see the log"
                link.send(other.socket, {"type": "note", "problem": problem})

    def _be_broken(self) -> None:
        log.error("no worker can be kept alive: the mount answers EIO until one can")
        self._broken = True

    def _resend(self) -> None:
        """Have the kernel queue again what was read and not answered."""
        device = self._held.get(FUSE + "0")
        if device is not None and self._state.get("resend"):
            try:
                os.write(device, _OUT_HEADER.pack(_OUT_HEADER.size, _NOTIFY_RESEND, 0))
            except OSError as error:
                log.debug("RESEND: %s", error)

    def _lose_template(self, template: Template) -> None:
        template.gone = True
        self._templates.remove(template)
        if self._template is template:
            self._template = None
            if not self._is_started and self._status is None:
                self._failed("the process that should start the workers died; see the log")
                self._status = 1
        for worker in [*self._workers]:
            if worker.template is template and (worker.closed or worker.phase == "starting"):
                self._lose(worker, None)

    # Time

    def _tend(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        for worker in [*self._workers]:
            limit = {"starting": START_DEADLINE_S, "ending": DRAIN_S}.get(worker.phase)
            if limit is not None and now > worker.since + limit:
                self._kill(worker)
        if self._missing() and now >= self._retry_at and self._status is None:
            self._start_missing()
        if self._is_started and self._is_down() and not self._broken and now >= self._down_since + PATIENCE_S:
            self._be_broken()
        if self._watching and now >= self._next_ping and self._is_started:
            self._ping(now)
        if self._end_at and now >= self._end_at:
            self._status = 0

    def _ping(self, now: float) -> None:
        self._next_ping = now + self._ping_s
        for worker in self._workers:
            if worker.phase != "serving":
                continue
            if worker.heard < now - self._hang_s:
                log.error("worker %d does not answer", worker.pid)
                self._kill(worker)
            link.send(worker.socket, {"type": "ping"})

    def _kill(self, worker: Worker) -> None:
        worker.doomed = worker.phase != "ending"
        try:
            os.kill(worker.pid or worker.template.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("worker %d has just ended", worker.pid)

    def _end_soon(self) -> None:
        """Take the mount away, and wait some time for those who use it."""
        self._ending = True
        self._end_at = time.monotonic() + END_S
        if not self._is_started:
            self._status = 1
        elif not any(link.send(worker.socket, {"type": "unmount"}) for worker in self._workers):
            self._status = 0

    def _clean_up(self) -> None:
        """End what is left, and the mount if it is still there."""
        if self._held and not self._state.get("unmounted"):
            self._run_unmount()
        for worker in self._workers:
            worker.socket.close()
        for template in self._templates:
            template.socket.close()
        self._wait_for_ends()
        for name, number in self._held.items():
            if name.startswith(FUSE):
                os.close(number)
        for path in self._state.get("unlink", []):
            if os.path.exists(path):
                os.unlink(path)

    def _wait_for_ends(self) -> None:
        """Leave no process behind: they end by themselves once nothing connects them to this one."""
        pids = [worker.pid for worker in self._workers if worker.pid] + [template.pid for template in self._templates]
        deadline = time.monotonic() + END_S
        for pid in pids:
            try:
                process = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            if not select.select([process], [], [], max(0.0, deadline - time.monotonic()))[0]:
                os.kill(pid, signal.SIGKILL)
            os.close(process)

    def _run_unmount(self) -> None:
        os.waitpid(os.posix_spawn(self._unmount[0], self._unmount, os.environ), 0)


_HANDLERS: Final[dict[str, Callable[[Supervisor, Worker, Message], None]]] = {
    "hold": Supervisor._hold,
    "remember": Supervisor._remember,
    "ready": Supervisor._ready,
    "started": Supervisor._first_start,
    "failed": Supervisor._failure,
    "pong": Supervisor._pong,
    "relay": Supervisor._relay,
    "unmounted": Supervisor._unmounted,
    "reload": Supervisor._reload,
}


def _is_killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def describe(status: int | None) -> str:
    """What wait(2) says of an end."""
    if status is None:
        return "cause unknown"
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"
