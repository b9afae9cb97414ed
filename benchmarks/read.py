"""How long does it take to read everything (tar), by one reader and by four at once? How fast do large files come?"""

from functools import partial

from benchmarks import peers, readers, trees
from benchmarks.frame import Context, Report, Target
from benchmarks.sandbox import sandbox
from benchmarks.states import CPU, MB, STATES, visit_all

READERS = 4
TARGETS = {
    "pyfuse3": {"cold": Target(12.0), "local": Target(9.0)},
    "channel": {"cold": Target(6.0), "local": Target(4.0), "hot": Target(1.6, is_ratio=True)},
}
PARALLEL_TARGETS = {"channel": {"cold": Target(5.0)}}
LARGE_TARGETS = {"local": Target(1500, is_upper=False), "hot": Target(1500, is_upper=False)}


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
                report.add_all(f"{task}, {what}: {CPU}", "s", visits.cpu[state])
            for unit, counts in visits.traffic.items():
                report.add_all(f"{task}: transferred when cold, the manifest included", unit, counts)
    _measure_large(context, report)
    return report


def _measure_large(context: Context, report: Report) -> None:
    tree = trees.large_files(context)
    size = sum(path.stat().st_size for path in tree.iterdir())
    with sandbox(context.work) as box:
        box.init()
        box.publish(tree)
        visits = visit_all(context, box, tree, readers.stream)
    for state, what in STATES.items():
        rates = {who: [size / MB / s for s in samples] for who, samples in visits.samples[state].items()}
        for who, samples in rates.items():
            report.add(
                f"large files, {what}",
                who,
                "MB/s",
                samples,
                LARGE_TARGETS.get(state) if who == "cvfs channel" else None,
            )
        report.add_all(f"large files, {what}: {CPU}", "s", visits.cpu[state])
