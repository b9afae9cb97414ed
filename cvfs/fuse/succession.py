"""Who serves a mount next: workers are started, replaced when they are lost, and all of them after a reload.

Here it is done; when, and whether callers still wait for it, is decided in `cvfs.fuse.supervision`.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from cvfs.fuse import link
from cvfs.fuse.crew import Crew
from cvfs.fuse.held import Held
from cvfs.fuse.link import Message
from cvfs.fuse.processes import Template, WorkerProcess, describe, is_killed
from cvfs.fuse.supervision import USELESS, Life, Recovery

log = logging.getLogger(__name__)


class Succession:
    """Sees to it that `crew` is complete, until the mount `is_over()`.

    `fail(error)` is called where there was nobody to succeed: the mount cannot be made. `is_started`: it was made, and
    can be used.
    """

    def __init__(self, crew: Crew, held: Held, fail: Callable[[str], None], is_over: Callable[[], bool]) -> None:
        self._crew, self._held, self._fail, self._is_over = crew, held, fail, is_over
        self._recovery = Recovery(time.monotonic())
        self.is_started = self._wants_reload = self._is_reload_asked = self._is_new_code_due = False
        self._generation = self._restarts = 0
        self._problem = ""

    @property
    def is_hopeless(self) -> bool:
        """Callers get EIO, until a worker serves again."""
        return self._recovery.is_hopeless

    def due_at(self) -> Iterator[float]:
        """When there is something to `tend`."""
        yield from self._crew.deadlines()
        if self._missing():
            yield self._recovery.retry_at
        if self.is_started and self._recovery.hopeless_at:
            yield self._recovery.hopeless_at

    def tend(self, now: float) -> None:
        """Do what is due."""
        for worker in self._crew.late(now):
            log.warning("worker %d takes too long over %s", worker.pid, worker.phase)
            self.give_up(worker)
        if now >= self._recovery.retry_at:
            self._start_missing()
        if self.is_started:
            if self._wants_reload and not self._crew.coming and not self._is_over():
                self._start_anew(is_asked=True)
            if self._crew.is_down and self._recovery.look(now):
                _tell_hopeless()

    def _missing(self) -> list[int]:
        """The slots that want a worker. The first worker mounts, and makes the channels of the others."""
        if self._is_over():
            return []
        return self._crew.missing(self._crew.count if self.is_started and self._held.device is not None else 1)

    # Beginnings

    def _start_missing(self) -> None:
        """If one was useless after the other, every other time with the code that is installed by then: nobody may be
        there who could be asked for a reload."""
        slots = self._missing()
        if slots:
            self._is_new_code_due = self._recovery.is_stuck and not self._is_new_code_due
            if self._is_new_code_due and not self._crew.coming:
                self._start_anew(is_asked=False)
            else:
                self.start(slots)

    def start(self, slots: Sequence[int]) -> None:
        """Have workers for these slots, or try again later."""
        try:
            for slot in slots:
                self._crew.start(slot)
        except OSError as error:
            log.error("cannot start a worker: %s", error)  # noqa: TRY400
            if self.is_started:
                self._back_off(USELESS)
            else:
                self._fail(f"cannot start the process that should serve the mount: {error}")

    def admit(self, worker: WorkerProcess) -> bool:
        """It is ready. Whether it, or all that waited for it, begin to serve."""
        was_reloading = self._crew.is_reloading
        begun = self._crew.admit(worker)
        if not begun:
            return False
        if was_reloading:
            self._generation, self._problem = self._generation + 1, ""
        self._recovery.record_served()
        for one in begun:
            link.send(one.socket, self._news("go"))
        return True

    # Reloads

    def reload(self) -> None:
        """Start workers with a new template beside those that serve, as soon as nobody else is being started."""
        self._wants_reload, self._problem = True, ""
        if self._crew.coming:
            log.info("the reload waits for workers that are being started")

    def _start_anew(self, *, is_asked: bool) -> None:
        self._is_reload_asked, self._wants_reload = is_asked or self._wants_reload, False
        log.info("reloading")
        try:
            self._crew.start_anew()
        except OSError as error:
            self._fail_reload(f"no new worker can be started: {error}")

    def _fail_reload(self, problem: str) -> None:
        """All goes on as it was."""
        log.error("cannot reload: %s", problem)
        if self._is_reload_asked:
            self._problem = problem
        self._tell_news()

    def _news(self, kind: str) -> Message:
        """What workers say in the status of the mount, and do not know themselves."""
        return {"type": kind, "generation": self._generation, "restarts": self._restarts, "problem": self._problem}

    def _tell_news(self) -> None:
        for worker in self._crew.serving:
            link.send(worker.socket, self._news("news"))

    # Losses

    def lose(self, worker: WorkerProcess, status: int | None) -> None:
        """A worker has ended. `status` is that of wait(2); None: nobody knows."""
        if worker not in self._crew.workers:
            return
        phase = worker.phase
        # Nobody knows how those ended whose template is gone; without a pid they never began, for the template failed.
        was_killed = bool(worker.pid) if status is None else is_killed(status)
        life = worker.life(time.monotonic(), was_killed=was_killed)
        self._crew.remove(worker, may_live=status is None)
        if self._is_over():
            return
        if not self.is_started:
            self._fail("the process that should serve the mount died; see the log")
            return
        if worker.owes and not (phase == "ending" and status == 0):
            self._save_requests(worker)
        if phase not in ("ending", "doomed"):
            self._record_loss(worker, phase, describe(status), life)
        if self._crew.is_down:
            self._recovery.record_down(time.monotonic())

    def lose_template(self, template: Template) -> None:
        """It has ended, and so have workers that nothing more will be heard of."""
        lost = self._crew.remove_template(template)
        if not self.is_started and not self._is_over():
            self._fail("the process that should start the workers died; see the log")
        for worker in lost:
            self.lose(worker, None)

    def give_up(self, worker: WorkerProcess) -> None:
        """Kill a worker that does not do what it is there for. It is as good as lost, whenever it may come to its end:
        one that hangs in its disk outlives SIGKILL."""
        phase = worker.phase
        worker.kill()
        if worker.owes:  # it may not end before another has answered: the kernel can hold it for who waits for it
            self._save_requests(worker)
        if phase != "ending" and self.is_started:
            self._record_loss(worker, phase, "it was given up", USELESS)
        if self._crew.is_down:
            self._recovery.record_down(time.monotonic())

    def _save_requests(self, worker: WorkerProcess) -> None:
        """What a worker had read and not answered: another answers it, or its callers get an error."""
        if self._held.device is not None and not self._held.resend():
            log.warning("this kernel cannot repeat what worker %d was asked: mounting anew", worker.pid)
            self._crew.dismiss()
            self._held.let_mount_go()

    def _record_loss(self, worker: WorkerProcess, phase: str, how: str, life: Life) -> None:
        """A worker was lost that nobody had told to end: decide when the next is started."""
        self._restarts += 1
        log.warning("worker %d died (%s) while %s", worker.pid, how, phase)
        if self._crew.is_reloading and phase != "serving":
            self._crew.call_off()
            self._fail_reload(f"the new worker did not start ({how}); see the log")
        self._back_off(life)
        self._tell_news()

    def _back_off(self, life: Life) -> None:
        now, was_hopeless = time.monotonic(), self._recovery.is_hopeless
        self._recovery.record_loss(now, life, is_down=self._crew.is_down)
        if self._recovery.is_hopeless and not was_hopeless:
            _tell_hopeless()


def _tell_hopeless() -> None:
    log.error("no worker can be kept alive: the mount answers EIO until one can")
