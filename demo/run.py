"""The demo: publish a Python environment, serve it, mount it, run a program from the mount; cold, warm, mounted anew.

usage: run.py [--keep | --stop] [--small]. `make demo` calls it.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from environment import DemoError, Environment, provide
from rich.console import Console
from rich.table import Table

from cvfs.terminal import show_count, show_size

ROOT = Path(__file__).resolve().parents[1]
NAME = "demo.example.org"
START_DEADLINE_S = 20.0

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the demo keeps what. All but `kept` goes with the end of a run."""

    kept: Path

    @property
    def run(self) -> Path:
        return self.kept / "run"

    @property
    def mount(self) -> Path:
        return self.kept / "mnt"

    @property
    def store(self) -> Path:
        return self.run / "store"

    @property
    def server(self) -> Path:
        return self.run / "server.json"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the program, and what the mount did for it."""

    what: str
    seconds: float
    answer: dict[str, Any]
    requests: int = 0
    received_bytes: int = 0
    hits: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave it mounted and served")
    parser.add_argument("--stop", action="store_true", help="end what --keep left")
    parser.add_argument("--small", action="store_true", help="a part of the standard library only; for tests")
    parser.add_argument("--kept", type=Path, default=ROOT / ".demo", help="where wheels are kept (default: .demo)")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    places = Places(arguments.kept.absolute())
    try:
        take_down(places)
        if not arguments.stop:
            demonstrate(places, keep=arguments.keep, small=arguments.small)
    except DemoError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted; everything was taken down", 130)


def demonstrate(places: Places, *, keep: bool, small: bool) -> None:
    check()
    with ExitStack() as ending:
        ending.callback(take_down, places)
        heading("A Python environment to publish")
        environment = provide(places.kept, small=small, say=say)
        say(f"it is in {short(environment.top)}")
        publish(places, environment)
        url = serve(places)
        mount(places, url)
        runs = [run_locally(environment), *run_mounted(places, environment, url)]
        show_runs(runs)
        show_next(places, environment, url, keep=keep)
        if keep:
            ending.pop_all()


def check() -> None:
    """Say what is missing before anything takes long. Raises DemoError."""
    for name in ("cvfs", "cvfs-publisher"):
        if not command(name).exists():
            raise DemoError(f"no {short(command(name))}: run 'make venv', then 'make demo'")
    checked = subprocess.run([ROOT / "scripts" / "check-fuse"], capture_output=True, text=True, check=False)
    if checked.returncode:
        raise DemoError(checked.stderr.strip().removeprefix("cvfs: ") or "FUSE cannot be used here")


def publish(places: Places, environment: Environment) -> None:
    heading("Publish it")
    places.store.parent.mkdir(parents=True)
    keys = ("--keys", short(places.run / "keys"))
    do("cvfs-publisher", "init", short(places.store), "--name", NAME, *keys)
    state = ("--state", short(places.run / "publisher"))
    arguments = (short(places.store), short(environment.top), *state, *keys, "--json")
    report = json.loads(do("cvfs-publisher", "publish", *arguments))
    tree, stored, saved = report["tree"], report["stored"], report["saved"]
    what = f"{show_count(tree['files'], 'file')}, {show_size(tree['bytes'])}"
    say(f"{what} in {report['seconds']:.1f} s ({tree['files'] / report['seconds']:,.0f} files a second)")
    savings = f"{show_size(saved['dedup_bytes'])} by deduplication"
    say(f"stored as {show_count(stored['packs'], 'pack')} and {show_count(stored['pages'], 'page')} of metadata,")
    say(f"{show_size(stored['bytes'])}: saved {savings}, {show_size(saved['compression_bytes'])} by compression")
    again = json.loads(do("cvfs-publisher", "publish", *arguments))
    say(f"unchanged, so nothing was read and no revision made: {again['seconds']:.2f} s")


def serve(places: Places) -> str:
    """Start the server; its address."""
    heading("Serve it, mount it")
    argv = [str(command("cvfs-publisher")), "serve", short(places.store), "--port", "0"]
    echo(["cvfs-publisher", *argv[1:]], "&")
    log = places.run / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    places.server.write_text(json.dumps({"pid": server.pid, "started": _started(server.pid)}))
    deadline = time.monotonic() + START_DEADLINE_S
    while not (urls := [word for word in log.read_text().split() if word.startswith("http://")]):
        if server.poll() is not None or time.monotonic() > deadline:
            raise DemoError(f"the server did not start: {log.read_text().strip()}")
        time.sleep(0.02)
    say(f"listening on {urls[0]}")
    return urls[0]


def mount(places: Places, url: str) -> None:
    places.mount.mkdir(exist_ok=True)
    started = time.perf_counter()
    do("cvfs", "mount", url, short(places.mount), *storage(places))
    say(f"mounted and ready in {time.perf_counter() - started:.2f} s, before any file was fetched")


def storage(places: Places) -> list[str]:
    """Options, so that the demo leaves nothing in the directories of the system."""
    kept = {"--cache": "cache", "--state-dir": "state", "--log-file": "log", "--root": "keys/root.json"}
    options = {name: places.run / path for name, path in kept.items()}
    return [word for name, path in options.items() for word in (name, short(path))]


def run_locally(environment: Environment) -> Run:
    heading("Run a program from it")
    start(environment, environment.top)
    return start(environment, environment.top, "local disk, for comparison")


def run_mounted(places: Places, environment: Environment, url: str) -> list[Run]:
    say(f"{shlex.join(map(short_word, environment.command(places.mount)))}")
    runs = [run_counted(places, environment, "first time, fetched")]
    show_answer(runs[0].answer, places.mount)
    runs.append(run_counted(places, environment, "again, all in the kernel's cache"))
    do("cvfs", "umount", short(places.mount))
    do("cvfs", "mount", url, short(places.mount), *storage(places))
    runs.append(run_counted(places, environment, "mounted anew, from the local cache"))
    return runs


def run_counted(places: Places, environment: Environment, what: str) -> Run:
    before = status(places)
    run = start(environment, places.mount, what)
    after = status(places)

    def difference(group: str, name: str) -> int:
        return int(after[group][name] - before[group][name])

    return Run(
        what,
        run.seconds,
        run.answer,
        difference("transport", "requests"),
        difference("transport", "received_bytes"),
        difference("fetcher", "hits"),
    )


def start(environment: Environment, seen_at: Path, what: str = "") -> Run:
    """Run the program with the environment as it is seen at a path. Raises DemoError."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables = kept | environment.variables(seen_at) | {"PYTHONDONTWRITEBYTECODE": "1"}
    started = time.perf_counter()
    done = subprocess.run(environment.command(seen_at), env=variables, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise DemoError(
            f"the program from {short(seen_at)} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
        )
    return Run(what, seconds, json.loads(done.stdout))


def status(places: Places) -> dict[str, Any]:
    answer = json.loads(run_command("cvfs", "status", short(places.mount), "--json"))
    mounted: dict[str, Any] = answer["mounts"][0]
    return mounted


def show_answer(answer: dict[str, Any], prefix: Path) -> None:
    for line in answer["results"]:
        say(line)
    modules, libraries = answer["modules"], answer["libraries"]
    interpreter = f"Python {answer['version']} is {short(Path(answer['interpreter']))}"
    shared = show_count(libraries["mounted"], "shared library", "shared libraries")
    say(f"{interpreter}; imported from {short(prefix)}: {show_count(modules['mounted'], 'module')}, {shared}")
    if modules["elsewhere"] or not answer["interpreter"].startswith(f"{prefix}/"):
        raise DemoError(f"imported from elsewhere: {', '.join(modules['elsewhere']) or answer['interpreter']}")
    say("not a single module from anywhere else")


def show_runs(runs: list[Run]) -> None:
    heading("What that took")
    table = Table(box=None, pad_edge=False, padding=(0, 0, 0, 2))
    table.add_column("  run", no_wrap=True)
    for name in ("seconds", "requests", "received", "hits"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        counts = (f"{run.requests:,}", show_size(run.received_bytes), f"{run.hits:,}")
        table.add_row(f"  {run.what}", f"{run.seconds:.2f}", *(counts if run is not runs[0] else ("-", "-", "-")))
    console.print(table)


def show_next(places: Places, environment: Environment, url: str, *, keep: bool) -> None:
    heading("Next")
    cvfs, publisher = short(command("cvfs")), short(command("cvfs-publisher"))
    if keep:
        python = shlex.join(map(short_word, environment.command(places.mount)[:2]))
        variables = environment.variables(places.mount).items()
        settings = " ".join(f"{name}={short_word(value)}" for name, value in variables)
        packages = short(places.mount / "lib")
        tries = [
            (f"ls {packages}", "it is still mounted"),
            (f"{settings} {python}", "a Python prompt from the mount"),
            (f"{cvfs} status {short(places.mount)}", "what the mount has done"),
            (f"{cvfs} ls -l {url} lib", "the same without a mount"),
            (f"{short(Path(sys.executable))} demo/run.py --stop{_where(places)}", "unmount, stop the server"),
        ]
    else:
        tries = [
            ("make demo KEEP=1", "the same, left mounted for you to look around"),
            (f"{publisher} init /tmp/my-store --name my.example.org", "a repository of your own:"),
            (f"{publisher} publish /tmp/my-store /usr/share/doc", ""),
            (f"{publisher} serve /tmp/my-store --port 8080 &", ""),
            (f"mkdir -p /tmp/my-mount && {cvfs} mount http://127.0.0.1:8080 /tmp/my-mount", ""),
            (f"{cvfs} status; {cvfs} umount /tmp/my-mount; kill %1", "and away with it"),
        ]
    for line, what in tries:
        console.print(f"  [bold]{line}[/bold]" + (f"   [dim]# {what}[/dim]" if what else ""))
    console.print()


def _where(places: Places) -> str:
    return "" if places.kept == ROOT / ".demo" else f" --kept {short(places.kept)}"


def take_down(places: Places) -> None:
    """Unmount, stop the server and remove what a run made, also one that was killed; wheels and environment stay."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if _is_mounted(places.mount):
            _unmount(places.mount)
        with suppress(OSError, ValueError):
            server = json.loads(places.server.read_text())
            if _started(server["pid"]) == server["started"]:
                _end(server["pid"])
        with suppress(OSError):
            places.mount.rmdir()
        shutil.rmtree(places.run, ignore_errors=True)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_mounted(directory: Path) -> bool:
    """Also if its process is gone, which is what every OSError but "not there" says."""
    try:
        os.lstat(directory)
        return os.path.ismount(directory)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _unmount(directory: Path) -> None:
    for options in ((), ("--lazy",)):
        argv = [command("cvfs"), "umount", directory, *options]
        if not subprocess.run(argv, capture_output=True, check=False).returncode:
            return


def _end(pid: int) -> None:
    """End a server of ours and wait until it is gone."""
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
    finally:
        os.close(descriptor)


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot: with its number it names the process for good."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def command(name: str) -> Path:
    """The command as it was installed beside the Python that runs this."""
    return Path(sys.executable).with_name(name)


def do(name: str, *arguments: str) -> str:
    """Show a command as it would be typed, run it; what it printed."""
    echo([name, *arguments])
    return run_command(name, *arguments)


def run_command(name: str, *arguments: str) -> str:
    done = subprocess.run([command(name), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        problem = done.stderr.strip() or f"exit status {done.returncode}"
        raise DemoError(f"'{name} {arguments[0]}' failed: {problem.splitlines()[-1]}")
    return done.stdout


def echo(words: list[str], end: str = "") -> None:
    typed = [short(command(words[0])), *words[1:]]
    console.print(f"  [bold]$ {shlex.join(typed)}{' ' + end if end else ''}[/bold]")


def heading(text: str) -> None:
    console.print(f"\n[bold cyan]== {text}[/bold cyan]")


def say(text: str) -> None:
    console.print(f"  {text}", markup=False)


def short(path: Path) -> str:
    """A path as one would type it in the checkout."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def short_word(word: str) -> str:
    return short(Path(word)) if word.startswith("/") else word


def _fail(text: str, exit_status: int) -> NoReturn:
    print(f"demo: error: {text}", file=sys.stderr)
    sys.exit(exit_status)


if __name__ == "__main__":
    main()
