"""The workers of one mount and the templates they are forked from: who is there, who is missing, who replaces whom."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cvfs.fuse import link
from cvfs.fuse.held import Held
from cvfs.fuse.options import REQUEST_DEADLINE_S
from cvfs.fuse.processes import Template, WorkerProcess, wait_for_ends

START_DEADLINE_S: Final = 60.0
"""For a worker to be ready. Opening a repository has far shorter deadlines of its own."""
DRAIN_S: Final = 5.0
"""For a worker that is to end: what it has begun is then given to another, where the kernel can do that."""
END_S: Final = 3.0
"""For all to end when the mount has ended, or is to end."""

_COMING: Final = ("starting", "ready")
_ANSWERING: Final = ("serving", "ending")


class Crew:
    """`count` workers when it is complete. `template` is the first one, `new_template` makes another.

    After a reload the workers of a new template take over all slots together, when the last of them is ready: were they
    to do so one by one, and one could not start, old and new code would go on side by side.
    """

    def __init__(self, new_template: Callable[[], Template], template: Template, count: int, held: Held) -> None:
        self._new_template, self._held = new_template, held
        self.count = count
        self.workers: list[WorkerProcess] = []
        self.templates: list[Template] = [template]
        self._template: Template | None = template
        self._former: Template | None = None
        """While reloading: what workers are forked from again if the new template is no good."""
        self.is_reloading = False

    @property
    def serving(self) -> list[WorkerProcess]:
        return [worker for worker in self.workers if worker.phase == "serving"]

    @property
    def coming(self) -> list[WorkerProcess]:
        """Those that do not serve yet."""
        return [worker for worker in self.workers if worker.phase in _COMING]

    @property
    def is_down(self) -> bool:
        """Nobody answers the kernel."""
        return not any(worker.phase in _ANSWERING for worker in self.workers)

    def senders(self) -> Sequence[Template | WorkerProcess]:
        """Those who may still say something."""
        return *(one for one in self.templates if not one.gone), *(one for one in self.workers if not one.closed)

    def missing(self, wanted: int) -> list[int]:
        """The slots below `wanted` that no worker serves or will serve."""
        present = {worker.slot for worker in (*self.serving, *self.coming)}
        return [slot for slot in range(wanted) if slot not in present]

    def start(self, slot: int) -> None:
        """A worker for `slot`, beside the one that may be there. Raises OSError: there can be none now."""
        if self._template is None:
            self._template = self._new_template()
            self.templates.append(self._template)
        worker = WorkerProcess(slot, self._template, self._template.fork())
        self.workers.append(worker)
        first = {"slot": slot, "count": self.count, "state": self._held.state, "supervisor": os.getpid()}
        link.send(worker.socket, {"type": "take", **first}, self._held.descriptors)

    def start_anew(self) -> None:
        """Workers of a new template for all slots; while nothing is mounted, one that mounts: the others come after it.
        Call it only while none are coming.

        Raises OSError: there can be none, and nothing has changed.
        """
        self._former, self._template = self._template, None
        self.is_reloading = True
        try:
            for slot in range(1 if self._held.device is None else self.count):
                self.start(slot)
        except OSError:
            self.call_off()
            raise

    def call_off(self) -> None:
        """Those that serve go on, with the former template; the workers of the new one end."""
        self._template, self._former = self._former, None
        self.is_reloading = False
        for worker in self.coming:
            worker.kill()
        self._retire_templates()

    def admit(self, worker: WorkerProcess) -> list[WorkerProcess]:
        """`worker` is ready; those that begin to serve now, as it or all may. Who served their slots before may end."""
        if worker.phase != "starting":  # it was given up before that was heard
            return []
        worker.enter("ready")
        coming = self.coming
        if self.is_reloading and any(one.phase == "starting" for one in coming):
            return []
        ready = [one for one in coming if one.phase == "ready"]
        slots = {one.slot for one in ready}
        for other in self.serving:
            if other.slot in slots:
                other.finish()
        for one in ready:
            one.begin()
        self._former, self.is_reloading = None, False
        self._retire_templates()
        return ready

    def remove(self, worker: WorkerProcess, *, may_live: bool) -> None:
        """It has ended, as far as anybody knows. A template that nobody needs any more, after a reload, ends too."""
        if may_live and worker.pid:
            worker.kill()
        self.workers.remove(worker)
        worker.socket.close()
        self._retire_templates()

    def _retire_templates(self) -> None:
        used = {one.template for one in self.workers} | {self._template, self._former}
        for template in self.templates:
            if template not in used and not template.gone:
                template.retire()

    def remove_template(self, template: Template) -> list[WorkerProcess]:
        """It has ended; the workers that nothing more will be heard of."""
        template.gone = True
        self.templates.remove(template)
        if self._template is template:
            self._template = None
        if self._former is template:
            self._former = None
        return [one for one in self.workers if one.template is template and (one.closed or one.phase == "starting")]

    def dismiss(self) -> None:
        """End all workers at once, whatever they do: the mount that they serve is given up."""
        if self.is_reloading:
            self.call_off()
        for worker in self.workers:
            worker.kill()
            worker.owes = False

    def deadlines(self) -> Iterator[float]:
        """When those have to be done who start or end."""
        limits_s = self._limits_s()
        return (worker.since + limits_s[worker.phase] for worker in self.workers if worker.phase in limits_s)

    def late(self, now: float) -> list[WorkerProcess]:
        """Those who should be done."""
        limits_s = self._limits_s()
        return [one for one in self.workers if one.phase in limits_s and now > one.since + limits_s[one.phase]]

    def _limits_s(self) -> dict[str, float]:
        """For how long a phase may last. Where the kernel cannot repeat a request, it has to be answered by who has it,
        and every worker does that within the deadline of requests."""
        return {"starting": START_DEADLINE_S, "ending": DRAIN_S + (0 if self._held.can_resend else REQUEST_DEADLINE_S)}

    def send(self, message: link.Message, *, but: WorkerProcess | None = None) -> bool:
        """To all workers, or all but one. False: nobody is there."""
        there = [worker for worker in self.workers if worker is not but and worker.phase != "doomed"]
        return sum(link.send(worker.socket, message) for worker in there) > 0

    def hand_over(self, message: link.Message, descriptors: dict[str, int], worker: WorkerProcess) -> None:
        """To those that serve the slot of `worker` after it."""
        for other in (*self.serving, *self.coming):
            if other is not worker and other.slot == worker.slot:
                link.send(other.socket, message, descriptors)

    def close(self) -> None:
        """Leave no process behind: they end by themselves once nothing connects them to this one."""
        processes: Sequence[Template | WorkerProcess] = (*self.workers, *self.templates)
        for one in processes:
            one.socket.close()
        wait_for_ends([one.pid for one in processes if one.pid], END_S)
