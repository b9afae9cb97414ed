"""What does a mount cost that nobody uses? Memory after a walk over a million files, and wake-ups."""

import time
from pathlib import Path

from benchmarks import readers, synthetic
from benchmarks.frame import Context, Report, Target
from benchmarks.sandbox import Mount, sandbox

FIELDS = {
    "VmRSS": "resident",
    "Pss": "proportional",
    "RssAnon": "anonymous",
    "RssFile": "of files",
    "RssShmem": "shared",
    "VmHWM": "peak",
}
TARGET = Target(120)
WORKER_TARGET = Target(80)
SUPERVISOR_TARGET = Target(15)
ROLES = ("supervisor", "template", "worker")
"""The processes of a mount of the channel engine, in the order in which they were started."""


def measure(context: Context) -> Report:
    report = Report("Memory of the client, all its processes; wake-ups while nobody uses it")
    counts = [1_000] if context.smoke else [100_000, 1_000_000]
    for count in counts:
        with sandbox(context.work) as box:
            synthetic.make_store(box.store, count)
            with box.serve() as url:
                for engine in context.engines:
                    box.forget_cache()
                    with box.mount(url, engine) as mount:
                        _add(report, "mounted", engine, mount, count)
                        seconds = [readers.walk(mount.directory), readers.walk(mount.directory)]
                        _add(report, "walked twice", engine, mount, count)
                        report.add(f"{count:,} files, the walks", f"cvfs {engine}", "s", seconds)
                        _add_roles(report, engine, mount, count)
                        if count == counts[0]:
                            _add_wake_ups(report, engine, mount, context.pick(20, 1))
    report.notes.append("'proportional' (Pss) counts once what the processes share since one forked the other.")
    report.notes.append(
        "From /proc/PID/status. 'of files' is what is mapped and can be dropped at any time: libraries, the index."
    )
    return report


def _add(report: Report, what: str, engine: str, mount: Mount, count: int) -> None:
    totals = dict.fromkeys(FIELDS, 0.0)
    processes = mount.processes()
    for pid in processes:
        for name, megabytes in _memory_mb(pid).items():
            totals[name] += megabytes
    task = f"{count:,} files, {what}"
    for name, meaning in FIELDS.items():
        target = TARGET if name == "Pss" and what != "mounted" else None
        report.add(task, f"cvfs {engine}, {meaning}", "MB", totals[name], target)
    report.add(task, f"cvfs {engine}, processes", "", len(processes))


def _add_roles(report: Report, engine: str, mount: Mount, count: int) -> None:
    """Each process for itself, of the engine that has more than one."""
    processes = sorted(mount.processes())
    if len(processes) != len(ROLES):
        return
    targets = {"supervisor": SUPERVISOR_TARGET, "worker": WORKER_TARGET if count <= 100_000 else None}
    for role, pid in zip(ROLES, processes, strict=True):
        memory = _memory_mb(pid)
        task = f"{count:,} files, walked twice, each process"
        report.add(task, f"cvfs {engine}, {role}, resident", "MB", memory["VmRSS"], targets.get(role))
        report.add(task, f"cvfs {engine}, {role}, proportional", "MB", memory["Pss"], targets.get(role))


def _add_wake_ups(report: Report, engine: str, mount: Mount, seconds: int) -> None:
    processes = mount.processes()
    before = _wake_ups(processes)
    time.sleep(seconds)
    count = sum(after - before.get(thread, after) for thread, after in _wake_ups(processes).items())
    report.add("wake-ups of an idle mount, refresh timer included", f"cvfs {engine}", "/s", count / seconds, Target(1))


def _memory_mb(pid: int) -> dict[str, float]:
    found = {}
    for line in [*_lines(pid, "status"), *_lines(pid, "smaps_rollup")]:
        name, _, value = line.partition(":")
        if name in FIELDS:
            found[name] = int(value.split()[0]) * 1024 / 1e6
    return found


def _wake_ups(processes: list[int]) -> dict[str, int]:
    """How often each thread has waited for something and got it."""
    found = {}
    for pid in processes:
        for task in Path(f"/proc/{pid}/task").iterdir():
            lines = _lines(pid, f"task/{task.name}/status")
            found[task.name] = next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))
    return found


def _lines(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/{name}").read_text().splitlines()
