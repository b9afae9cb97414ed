"""The program that the demo runs from its mount: imports, computes, and tells where everything came from, as JSON.

usage: program.py PREFIX [MODULE...]
"""

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    prefix, *names = sys.argv[1:]
    modules = {name: importlib.import_module(name) for name in names}
    results = [compute() for name, compute in COMPUTATIONS.items() if name in modules]
    files = [file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))]
    mapped = {line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    answer = {
        "interpreter": sys.executable,
        "version": sys.version.split()[0],
        "results": results,
        "modules": _count(files, prefix),
        "libraries": _count([path.strip() for path in mapped if ".so" in path], prefix),
    }
    print(json.dumps(answer))


def _count(paths: list[str], prefix: str) -> dict[str, object]:
    """How many of `paths` are below `prefix`, and which are elsewhere."""
    elsewhere = sorted(path for path in paths if not path.startswith(prefix + "/"))
    return {"mounted": len(paths) - len(elsewhere), "elsewhere": elsewhere}


def _numpy() -> str:
    import numpy

    matrix = numpy.vander(numpy.arange(1.0, 6.0))
    return f"numpy solved a system of 5 equations: x[0] = {numpy.linalg.solve(matrix, numpy.ones(5))[-1]:.3f}"


def _scipy() -> str:
    from scipy import integrate, stats

    area, _ = integrate.quad(stats.norm.pdf, -1.96, 1.96)
    return f"scipy integrated the normal distribution from -1.96 to 1.96: {area:.4f}"


def _pandas() -> str:
    import pandas

    frame = pandas.DataFrame({"kind": list("aabb"), "value": [1, 2, 3, 4]})
    return f"pandas summed by kind: {frame.groupby('kind')['value'].sum().to_dict()}"


def _sympy() -> str:
    import sympy

    x = sympy.Symbol("x")
    return f"sympy integrated x*exp(x): {sympy.integrate(x * sympy.exp(x), x)}"


def _statistics() -> str:
    import statistics

    return f"the standard library took a mean: {statistics.fmean([1, 2, math.pi]):.3f}"


COMPUTATIONS: dict[str, Callable[[], str]] = {
    "statistics": _statistics,
    "numpy": _numpy,
    "scipy": _scipy,
    "pandas": _pandas,
    "sympy": _sympy,
}


if __name__ == "__main__":
    main()
