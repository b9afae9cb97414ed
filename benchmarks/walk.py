"""How long does a full walk of the metadata take, by `find -printf`, and by `find` alone over 20,000 entries?"""

from benchmarks import peers, readers, trees
from benchmarks.frame import Context, Report, Target
from benchmarks.sandbox import sandbox
from benchmarks.states import CPU, STATES, visit_all

TARGETS = {"cold": Target(1.5), "local": Target(1.0)}
NAMES_TARGETS = {"local": Target(0.5), "hot": Target(2.0, is_ratio=True)}


def measure(context: Context) -> Report:
    report = Report("Walk: find -printf over the tree of software; find over 20,000 names", peers.LOCAL)
    tasks = {
        "find -printf": (trees.software(context), readers.walk, TARGETS),
        "find of 20,000": (trees.entries(context), readers.find, NAMES_TARGETS),
    }
    for task, (tree, action, targets) in tasks.items():
        with sandbox(context.work) as box:
            box.init()
            box.publish(tree)
            visits = visit_all(context, box, tree, action)
        for state, what in STATES.items():
            report.add_all(f"{task}, {what}", "s", visits.samples[state], targets.get(state))
            report.add_all(f"{task}, {what}: {CPU}", "s", visits.cpu[state])
        for unit, samples in visits.traffic.items():
            report.add_all(f"{task}: transferred when cold, the manifest included", unit, samples)
    return report
