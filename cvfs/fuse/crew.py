"""The workers of one mount and the templates they are forked from: who is there, who is missing, who replaces whom."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cvfs.fuse import link
from cvfs.fuse.held import Held
from cvfs.fuse.processes import Template, Worker, wait_for_ends

START_DEADLINE_S: Final = 60.0
"""For a worker to be ready. Opening a repository has far shorter deadlines of its own."""
DRAIN_S: Final = 5.0
"""For a worker that is to end: what it has begun is then given to another."""
END_S: Final = 3.0
"""For all to end when the mount has ended, or is to end."""

_LIMITS_S: Final = {"starting": START_DEADLINE_S, "ending": DRAIN_S}


class Crew:
    """`count` workers when it is complete. `template` is the first one, `new_template` makes another."""

    def __init__(self, new_template: Callable[[], Template], template: Template, count: int, held: Held) -> None:
        self._new_template, self._held = new_template, held
        self.count = count
        self.workers: list[Worker] = []
        self.templates: list[Template] = [template]
        self._template: Template | None = template
        self._former: Template | None = None
        """What the present one is to replace, until a worker of that serves."""

    @property
    def serving(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.phase == "serving"]

    @property
    def is_down(self) -> bool:
        """Nobody answers the kernel."""
        return not any(worker.phase in ("serving", "ending") for worker in self.workers)

    def senders(self) -> Sequence[Template | Worker]:
        """Those who may still say something."""
        return *(one for one in self.templates if not one.gone), *(one for one in self.workers if not one.closed)

    def missing(self, wanted: int) -> list[int]:
        """The slots below `wanted` that no worker serves or will serve."""
        present = {worker.slot for worker in self.workers if worker.phase != "ending"}
        return [slot for slot in range(wanted) if slot not in present]

    def start(self, slot: int) -> None:
        """A worker for `slot`, beside the one that may be there."""
        if self._template is None:
            self._template = self._new_template()
            self.templates.append(self._template)
        worker = Worker(slot, self._template, self._template.fork())
        self.workers.append(worker)
        first = {"slot": slot, "count": self.count, "state": self._held.state, "supervisor": os.getpid()}
        link.send(worker.socket, {"type": "take", **first}, self._held.descriptors)

    def start_anew(self) -> bool:
        """Workers of a new template for all slots. False: somebody is being started already."""
        if any(worker.phase == "starting" for worker in self.workers):
            return False
        self._former, self._template = self._template, None
        for slot in range(self.count):
            self.start(slot)
        return True

    def take_over(self, worker: Worker) -> None:
        """`worker` is ready: who served its slot may end."""
        worker.enter("serving")
        for other in self.serving:
            if other.slot == worker.slot and other is not worker:
                other.finish()
        if all(other.template is worker.template for other in self.serving):
            self._former = None

    def go_back(self, worker: Worker, problem: str) -> None:
        """`worker` was to take over, and did not come up: who serves its slot goes on, with the former template."""
        for other in self.serving:
            if other.slot == worker.slot:
                self._template, self._former = self._former or self._template, None
                link.send(other.socket, {"type": "note", "problem": problem})

    def remove(self, worker: Worker, *, may_live: bool) -> None:
        """It has ended, as far as anybody knows. A template that nobody needs any more, after a reload, ends too."""
        self.workers.remove(worker)
        if may_live and worker.pid:
            worker.kill()
        worker.socket.close()
        used = {one.template for one in self.workers} | {self._template, self._former}
        for template in self.templates:
            if template not in used and not template.gone:
                template.retire()

    def remove_template(self, template: Template) -> list[Worker]:
        """It has ended; the workers that nothing more will be heard of."""
        template.gone = True
        self.templates.remove(template)
        if self._template is template:
            self._template = None
        return [one for one in self.workers if one.template is template and (one.closed or one.phase == "starting")]

    def dismiss(self) -> None:
        """End all workers at once, whatever they do."""
        for worker in self.workers:
            worker.enter("ending")
            worker.kill()

    def deadlines(self) -> Iterator[float]:
        """When those have to be done who start or end."""
        return (worker.since + _LIMITS_S[worker.phase] for worker in self.workers if worker.phase in _LIMITS_S)

    def kill_late(self, now: float) -> None:
        for worker in self.workers:
            if now > worker.since + _LIMITS_S.get(worker.phase, float("inf")):
                worker.kill()

    def send(self, message: link.Message, *, but: Worker | None = None) -> bool:
        """To all workers, or all but one. False: nobody is there."""
        return sum(link.send(worker.socket, message) for worker in self.workers if worker is not but) > 0

    def close(self) -> None:
        """Leave no process behind: they end by themselves once nothing connects them to this one."""
        processes: Sequence[Template | Worker] = (*self.workers, *self.templates)
        for one in processes:
            one.socket.close()
        wait_for_ends([one.pid for one in processes if one.pid], END_S)
