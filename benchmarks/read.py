"""How long does it take to read everything (tar), by one reader and by four at once?"""

from functools import partial

from benchmarks import peers, readers, trees
from benchmarks.frame import Context, Report, Target
from benchmarks.sandbox import sandbox
from benchmarks.states import STATES, visit_all

READERS = 4
TARGETS = {
    "pyfuse3": {"cold": Target(12.0), "local": Target(9.0)},
    "channel": {"cold": Target(6.0), "local": Target(4.0), "hot": Target(1.6, is_ratio=True)},
}
PARALLEL_TARGETS = {"channel": {"cold": Target(5.0)}}


def measure(context: Context) -> Report:
    report = Report("Read everything with tar", peers.LOCAL)
    tree = trees.software(context)
    shares = readers.shares(tree, READERS)
    tasks = {"one reader": (readers.read, TARGETS)}
    tasks[f"{READERS} readers, a quarter each"] = (partial(readers.read_in_parallel, names=shares), PARALLEL_TARGETS)
    with sandbox(context.work) as box:
        box.init()
        box.publish(tree)
        for task, (action, targets) in tasks.items():
            visits = visit_all(context, box, tree, action)
            for state, what in STATES.items():
                for who, samples in visits.samples[state].items():
                    engine = who.removeprefix("cvfs ")
                    report.add(f"{task}, {what}", who, "s", samples, targets.get(engine, {}).get(state))
            for unit, counts in visits.traffic.items():
                report.add_all(f"{task}: transferred when cold, the manifest included", unit, counts)
    return report
