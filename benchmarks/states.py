"""The states a tree is met in, for ours and for the peers, so that walk and read are measured in the same way.

cold: never seen by this host. local: a new process, all in the local cache. dropped: the same, after the kernel has
dropped its caches, so the local cache is read from the disk. hot: once more, at once.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks import peers
from benchmarks.frame import Context, drop_caches
from benchmarks.sandbox import Mount, Sandbox, cpu_s

Measure = Callable[[Path], float]
Samples = dict[str, dict[str, list[float]]]
"""State: subject: samples."""

CPU = "CPU of the client"
"""What a row's task ends with that has CPU seconds: those of all its processes, whatever else the machine did."""

STATES = {
    "cold": "cold: never seen by this host, over loopback",
    "local": "local: a new process, everything in the local cache",
    "dropped": "dropped: a new process, the kernel's caches dropped",
    "hot": "hot: once more",
}

MB = 1e6


class Visits:
    """Samples by state and subject, and how much came over the network for the first visit of each engine."""

    def __init__(self) -> None:
        self.samples: Samples = {state: {} for state in STATES}
        self.cpu: Samples = {state: {} for state in STATES}
        self.traffic: dict[str, dict[str, list[float]]] = {"requests": {}, "MB": {}}

    def add(self, state: str, who: str, seconds: float) -> None:
        self.samples[state].setdefault(who, []).append(seconds)

    def add_ours(self, state: str, who: str, mount: Mount, measure: Measure) -> None:
        """A sample, and the CPU seconds that all processes of the client have spent meanwhile."""
        processes = mount.processes()
        before = sum(map(cpu_s, processes))
        self.add(state, who, measure(mount.directory))
        self.cpu[state].setdefault(who, []).append(sum(map(cpu_s, processes)) - before)

    def add_traffic(self, who: str, mount: Mount) -> None:
        transport = mount.status()["transport"]
        self.traffic["requests"].setdefault(who, []).append(transport["requests"])
        self.traffic["MB"].setdefault(who, []).append(transport["received_bytes"] / MB)


def visit_all(context: Context, box: Sandbox, tree: Path, measure: Measure, *, settles: bool = False) -> Visits:
    """`context.runs` rounds, each with every subject in every state. The tree is the box's published one.

    `settles`: the client is given the time to make files of packs, before the kernel's caches are dropped.
    """
    visits = Visits()
    with ExitStack() as until_end:
        url = until_end.enter_context(box.serve())
        for _ in range(context.runs):
            for engine in context.engines:
                visit_cvfs(context, visits, box, url, engine, measure, settles=settles)
            visit_local(context, visits, tree, measure)
            if peers.have_squashfuse():
                visit_squashfuse(context, visits, tree, box.directory / "peer", measure)
    return visits


def visit_cvfs(
    context: Context, visits: Visits, box: Sandbox, url: str, engine: str, measure: Measure, *, settles: bool
) -> None:
    who = f"cvfs {engine}"
    box.forget_cache()
    with box.mount(url, engine) as mount:
        visits.add_ours("cold", who, mount, measure)
        visits.add_traffic(who, mount)
    with box.mount(url, engine) as mount:
        visits.add_ours("local", who, mount, measure)
        visits.add_ours("hot", who, mount, measure)
        if settles and context.can_drop_caches:
            mount.settle()
    if context.can_drop_caches:
        with box.mount(url, engine) as mount:
            drop_caches()
            visits.add_ours("dropped", who, mount, measure)


def visit_local(context: Context, visits: Visits, tree: Path, measure: Measure) -> None:
    if context.can_drop_caches:
        drop_caches()
        visits.add("dropped", peers.LOCAL, measure(tree))
    else:
        measure(tree)
    visits.add("hot", peers.LOCAL, measure(tree))


def visit_squashfuse(context: Context, visits: Visits, tree: Path, directory: Path, measure: Measure) -> None:
    """Its image is what our local cache is; it has nothing like a cold state, which would be the image's download."""
    image = peers.image_of(context, tree)
    with peers.squashfuse(image, directory) as mounted:
        visits.add("local", peers.SQUASHFUSE, measure(mounted))
        visits.add("hot", peers.SQUASHFUSE, measure(mounted))
    if context.can_drop_caches:
        with peers.squashfuse(image, directory) as mounted:
            drop_caches()
            visits.add("dropped", peers.SQUASHFUSE, measure(mounted))
