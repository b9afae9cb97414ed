"""How much memory does the client hold after a walk over a million files?"""

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


def measure(context: Context) -> Report:
    report = Report("Memory of the client, all its processes")
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
    report.notes.append("'proportional' (Pss) counts once what the processes share since one forked the other.")
    report.notes.append(
        "From /proc/PID/status. 'of files' is what is mapped and can be dropped at any time: libraries, the index."
    )
    return report


def _add(report: Report, what: str, engine: str, mount: Mount, count: int) -> None:
    totals = dict.fromkeys(FIELDS, 0)
    processes = mount.processes()
    for pid in processes:
        lines = [*_lines(pid, "status"), *_lines(pid, "smaps_rollup")]
        for line in lines:
            name, _, value = line.partition(":")
            if name in FIELDS:
                totals[name] += int(value.split()[0])
    task = f"{count:,} files, {what}"
    for name, meaning in FIELDS.items():
        target = TARGET if name == "VmRSS" and what != "mounted" else None
        report.add(task, f"cvfs {engine}, {meaning}", "MB", totals[name] * 1024 / 1e6, target)
    report.add(task, f"cvfs {engine}, processes", "", len(processes))


def _lines(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/{name}").read_text().splitlines()
