"""What the questions share: samples, targets, runs that are interleaved, a table and JSON."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cvfs.config.settings import ENGINES

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
    """What a median should be: at most `limit`, or at least it; or what its ratio to the peer's should be."""

    limit: float
    is_upper: bool = True
    is_ratio: bool = False

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.is_upper else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.is_upper else '>='} {'x ' if self.is_ratio else ''}{show(self.limit)}"


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
        """To the median of the peer's row of the same task; None if there is none."""
        key = (row.what, row.unit, self.peer)
        peers = [other.median for other in self.rows if (other.what, other.unit, other.who) == key]
        return row.median / peers[0] if peers and peers[0] and row.who != self.peer else None

    def verdict(self, row: Row) -> str:
        """met, missed, or nothing where there is no target, or no peer to compare with."""
        value = self.ratio(row) if row.target is not None and row.target.is_ratio else row.median
        if row.target is None or value is None:
            return ""
        return "met" if row.target.is_met(value) else "missed"

    def by_task(self) -> dict[str, list[Row]]:
        """The rows of each task, tasks in the order in which they came first."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.what, []).append(row)
        return found

    def as_json(self) -> dict[str, Any]:
        rows = []
        for row in self.rows:
            figures = {"median": row.median, "ratio": self.ratio(row), "verdict": self.verdict(row)}
            rows.append({**asdict(row), **figures})
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
        for what, rows in self.by_task().items():
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
        ratio, verdict = self.ratio(row), self.verdict(row)
        style = {"met": "green", "missed": "red"}.get(verdict, "white")
        return [
            row.who,
            f"{show(row.median)} {row.unit}",
            row.spread,
            "" if ratio is None else f"x {ratio:.2f}",
            "" if row.target is None else f"{row.target}{'' if row.target.is_ratio else ' ' + row.unit}",
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
