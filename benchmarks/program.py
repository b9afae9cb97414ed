"""How long does a program take to start from a mount? The interpreter's library and scipy are all that it reads."""

import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks import peers, trees
from benchmarks.frame import Context, Report, Target, timed
from benchmarks.sandbox import sandbox
from benchmarks.states import STATES, visit_all

SETTLED = "a new process some seconds later, when packs have become files; the kernel's caches dropped"
TARGETS = {"hot": Target(1.1, is_ratio=True), "dropped": Target(1.5, is_ratio=True)}


def measure(context: Context) -> Report:
    module = "json" if context.smoke else "scipy.stats"
    report = Report(f"Start a program: python -c 'import {module}', its library in the mount", peers.LOCAL)
    tree = trees.python(context)

    def start(top: Path) -> float:
        return timed(lambda: _import(top, module))

    with sandbox(context.work) as box:
        box.init()
        box.publish(tree)
        visits = visit_all(context, box, tree, start, settles=True)
    for state, what in (STATES | {"dropped": f"dropped: {SETTLED}"}).items():
        for who, samples in visits.samples[state].items():
            report.add(what, who, "s", samples, TARGETS.get(state) if who == "cvfs channel" else None)
    for unit, counts in visits.traffic.items():
        report.add_all("transferred when cold, the manifest included", unit, counts)
    return report


def _import(top: Path, module: str) -> None:
    """Only the interpreter's own executable is not below `top`; Debian's does not look into site-packages by itself."""
    packages = top / "lib" / Path(sysconfig.get_path("stdlib")).name / "site-packages"
    environment = {"PYTHONHOME": str(top), "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys._base_executable, "-c", f"import {module}"], env=environment, check=True)  # type: ignore[attr-defined]
