"""How long does a full walk of the metadata take (`find -printf`)?"""

from benchmarks import peers, readers, trees
from benchmarks.frame import Context, Report, Target
from benchmarks.sandbox import sandbox
from benchmarks.states import STATES, visit_all

TARGETS = {"cold": Target(1.5), "local": Target(1.0)}


def measure(context: Context) -> Report:
    report = Report("Walk: find -printf over the tree of software", peers.LOCAL)
    tree = trees.software(context)
    with sandbox(context.work) as box:
        box.init()
        box.publish(tree)
        visits = visit_all(context, box, tree, readers.walk)
    for state, what in STATES.items():
        report.add_all(what, "s", visits.samples[state], TARGETS.get(state))
    for unit, samples in visits.traffic.items():
        report.add_all("transferred for the cold walk, the manifest included", unit, samples)
    return report
