"""What the questions share: samples, targets, runs that are interleaved, a table and JSON."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cvfs.mount.request import ENGINES

RESULTS = Path(__file__).resolve().parent / "results"
DEFAULT_RUNS = 5
DEFAULT_WORK = Path("/var/tmp/cvfs-benchmarks")


@dataclass(frozen=True, slots=True)
class Context:
    """How to measure. `work` keeps trees from one run to the next; `smoke`: tiny trees, only that it runs at all."""

    work: Path = DEFAULT_WORK
    smoke: bool = False
    runs: int = DEFAULT_RUNS
    engines: tuple[str, ...] = tuple(name for name in ENGINES if name != "auto")
    tree: Path | None = None

    @property
    def can_drop_caches(self) -> bool:
        """Needs root; and the whole machine pays for it, so never for a test."""
        return not self.smoke and os.access("/proc/sys/vm/drop_caches", os.W_OK)

    def pick(self, full: int, smoke: int) -> int:
        """A size: the one that is measured, or the one that only shows that it runs."""
        return smoke if self.smoke else full


@dataclass(frozen=True, slots=True)
class Target:
    """What a median should be: at most `limit`, or at least it."""

    limit: float
    is_upper: bool = True

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.is_upper else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.is_upper else '>='} {show(self.limit)}"


@dataclass(frozen=True, slots=True)
class Row:
    """The samples of one subject, `who`, at one task, `what`."""

    what: str
    who: str
    unit: str
    samples: tuple[float, ...]
    target: Target | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> str:
        low, high = min(self.samples), max(self.samples)
        return "" if len(self.samples) < 2 else f"{show(low)}-{show(high)}"

    def verdict(self) -> str:
        return "" if self.target is None else "met" if self.target.is_met(self.median) else "missed"


@dataclass(slots=True)
class Report:
    """The answer to one question. Ratios are to the row of the same task whose subject is `peer`."""

    question: str
    peer: str = ""
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    load_before: tuple[float, ...] = field(default_factory=os.getloadavg)

    def add(
        self, what: str, who: str, unit: str, samples: float | Sequence[float], target: Target | None = None
    ) -> None:
        values = tuple(samples) if isinstance(samples, Sequence) else (samples,)
        self.rows.append(Row(what, who, unit, values, target))

    def add_all(
        self, what: str, unit: str, samples: Mapping[str, Sequence[float]], target: Target | None = None
    ) -> None:
        """A row for each subject; the target is for ours, whose names begin with cvfs."""
        for who, values in samples.items():
            self.add(what, who, unit, values, target if who.startswith("cvfs") else None)

    def ratio(self, row: Row) -> float | None:
        peers = [
            other.median
            for other in self.rows
            if (other.what, other.unit, other.who) == (row.what, row.unit, self.peer)
        ]
        return row.median / peers[0] if peers and peers[0] and row.who != self.peer else None

    def as_json(self) -> dict[str, Any]:
        rows = [
            {
                **asdict(row),
                "median": row.median,
                "verdict": row.verdict(),
                f"ratio_to_{self.peer or 'peer'}": self.ratio(row),
            }
            for row in self.rows
        ]
        return {
            "question": self.question,
            "peer": self.peer,
            "rows": rows,
            "notes": self.notes,
            "load_before": self.load_before,
        }

    def print(self, console: Console) -> None:
        """A table for each task; the subjects' columns stand below each other."""
        console.print(f"[bold]== {self.question}[/bold]")
        for what, rows in groupby(self.rows, key=lambda row: row.what):
            table = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
            table.add_column(width=30, overflow="fold")
            for width in (15, 17, 8, 19, 7):
                table.add_column(width=width, justify="right", no_wrap=True)
            for row in rows:
                table.add_row(*self._cells(row))
            console.print(f"\n  {what}", style="bold", markup=False)
            console.print(table)
        console.print(f"\n  Columns: median, smallest-largest, ratio to {self.peer or 'a peer'}, target.", style="dim")
        for note in self.notes:
            console.print(f"  {note}", style="dim")
        console.print()

    def _cells(self, row: Row) -> list[str]:
        ratio, verdict = self.ratio(row), row.verdict()
        style = {"met": "green", "missed": "red"}.get(verdict, "white")
        return [
            row.who,
            f"{show(row.median)} {row.unit}",
            row.spread,
            "" if ratio is None else f"x {ratio:.2f}",
            "" if row.target is None else f"{row.target} {row.unit}",
            f"[{style}]{verdict}[/{style}]",
        ]


def show(value: float) -> str:
    """Three digits that count; whole numbers above."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def interleave(runs: int, subjects: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each subject's samples, taken A B C A B C: what drifts meanwhile, as the load of the machine, meets all alike."""
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(runs):
        for name, measure in subjects.items():
            samples[name].append(measure())
    return samples


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "root": os.geteuid() == 0,
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def drop_caches(what: int = 3) -> None:
    """Make the kernel forget pages (1), names and inodes (2), or both (3). Needs root."""
    if what & 1:
        os.sync()
    Path("/proc/sys/vm/drop_caches").write_text(str(what))
