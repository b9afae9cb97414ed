"""The command: python -m benchmarks."""

import json
import signal
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from rich.console import Console

from benchmarks.frame import DEFAULT_RUNS, DEFAULT_WORK, RESULTS, Context, Report, machine

WIDTH = 110
QUESTIONS = ("publish", "mount", "walk", "read", "program", "operations", "workers", "memory", "quota", "core")
"""Each is a module of this package with `measure(context) -> Report`."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--smoke", is_flag=True, help="Tiny trees, once each: only that it runs. Figures mean nothing.")
@click.option("--runs", type=click.IntRange(1), help="Of each subject.  [default: 5]")
@click.option("--engine", "engines", multiple=True, help="Repeatable.  [default: all there are]")
@click.option("--tree", type=click.Path(path_type=Path), help="Measure with this tree instead of parts of /usr.")
@click.option("--work", type=click.Path(path_type=Path), help=f"Where trees are kept.  [default: {DEFAULT_WORK}]")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout, the tables on stderr.")
def main(
    names: tuple[str, ...],
    smoke: bool,
    runs: int | None,
    engines: tuple[str, ...],
    tree: Path | None,
    work: Path | None,
    as_json: bool,
) -> None:
    """Measure cvfs beside ext4, squashfuse, tar and mksquashfs.

    NAME: publish, mount, walk, read, program, operations, workers, memory, quota, core (default: all).
    """
    unknown = set(names) - set(QUESTIONS)
    if unknown:
        raise click.UsageError(f"no question {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    context = Context(smoke=smoke, runs=runs or (1 if smoke else DEFAULT_RUNS), tree=tree)
    if engines:
        context = replace(context, engines=engines)
    if smoke and work is None:
        with TemporaryDirectory(prefix="cvfs-benchmarks-") as directory:
            _run(replace(context, work=Path(directory)), names or QUESTIONS, as_json)
    else:
        _run(replace(context, work=work or DEFAULT_WORK), names or QUESTIONS, as_json)


def _run(context: Context, names: tuple[str, ...], as_json: bool) -> None:
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    context.work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": machine(), "smoke": context.smoke, "reports": {}}
    console.print("  ".join(f"{name} {value}" for name, value in result["machine"].items()), style="dim")
    for name in names:
        report: Report = import_module(f"benchmarks.{name}").measure(context)
        result["reports"][name] = report.as_json()
        report.print(console)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    if not context.smoke:
        console.print(f"written to {_write(result)}", style="dim")


def _write(result: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


if __name__ == "__main__":
    # So that mounts and servers are taken down also when a supervisor ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
