"""What the end-to-end tests act through: a host with directories of its own, a store, a server, all of them real.

Mounts are made by the command that a user would type, in processes of their own; whatever a test does, `Host.close`
leaves no mount and no process behind, and fails if it had to end one by force.
"""

import atexit
import contextlib
import functools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from publisher.publishing.options import Options
from publisher.publishing.publish import publish
from publisher.repository.create import create
from publisher.signing.keys import Keys
from publisher.store import open_store
from tests.mounts import mount_points

ROOT = Path(__file__).resolve().parents[2]
PYTHON = (sys.executable, "-bb")
INTERPRETER = {sys.prefix, sys.base_prefix} - {"/usr"}
"""The directories that Python needs. The system's own is wherever /usr is; to bind that again would uncover what is
hidden there, or keep it from being written to."""
TOKEN = "CVFS_TEST_TOP"
"""In the environment of every process that a test starts: by it those that are left are found."""

_PATIENCE_S = 30.0

T = TypeVar("T")


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Return when `condition` holds; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def eventually(look: Callable[[], T], timeout_s: float = 20.0) -> T:
    """What `look` returns once it succeeds: a failure is remembered for a moment."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return look()
        except OSError:
            assert time.monotonic() < deadline, "it still fails"


def run(
    *arguments: str | bytes | Path, check: bool = True, timeout_s: float = 60.0, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """The outcome of a command, which must end within `timeout_s`; with `check`, with status 0."""
    outcome = subprocess.run(arguments, capture_output=True, timeout=timeout_s, check=False, **options)
    assert outcome.returncode == 0 or not check, f"{arguments[:8]}: {outcome.stderr.decode(errors='replace')[-2000:]}"
    return outcome


class Store:
    """A publisher's store, and what it takes to publish into it."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self._state = path, path.with_name(path.name + "-state")
        self.keys = path.with_name(path.name + "-keys") if name else trust().keys_for(path)
        self._run("init", path, "--name", name or NAME, SOURCE_DATE_EPOCH=trust().epoch)

    def publish(self, tree: Path, *options: str) -> dict[str, Any]:
        """What `publish --json` says."""
        outcome = self._run("publish", self.path, tree, "--json", *options, "--state", self._state)
        report: dict[str, Any] = json.loads(outcome.stdout)
        return report

    def publish_here(self, tree: Path) -> None:
        """As `publish`, in this process: for those who do it often."""
        opened = open_store(str(self.path))
        with opened.lock(None):
            publish(opened, str(tree), self._state, Options(), int(time.time()), keys=Keys(self.keys))

    def blobs(self) -> set[Path]:
        return {path for path in (self.path / "data").rglob("*") if path.is_file()}

    def _run(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
        return run(
            *PYTHON,
            "-m",
            "publisher",
            *arguments,
            cwd=ROOT,
            env=os.environ | {"CVFS_KEYS": str(self.keys), **environment},
        )


class Trust:
    """What the stores of a test run have in common: keys, name and time, so that one root is right for all."""

    def __init__(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="cvfs-e2e-keys-"))
        atexit.register(shutil.rmtree, self.top, ignore_errors=True)
        self.root, self.epoch = self.top / "keys" / "root.json", str(int(time.time()))
        keys = Keys(self.top / "keys")
        create(str(self.top / "store"), NAME, int(self.epoch), keys)

    def keys_for(self, store: Path) -> Path:
        """A copy of the keys for one store, which makes a root of its own with them: the same."""
        keys = store.with_name(store.name + "-keys")
        keys.mkdir(mode=0o700)
        for key in self.root.parent.glob("*.pem"):
            shutil.copy2(key, keys)
        return keys


NAME = "e2e.example.org"


@functools.cache
def trust() -> Trust:
    return Trust()


class Server:
    """The embedded server as a process; what it was asked for is in its log."""

    def __init__(self, store: Path, top: Path, port: int = 0) -> None:
        self._log = top / f"server-{time.monotonic_ns()}.log"
        command = [*PYTHON, "-m", "publisher", "serve", str(store), "--port", str(port), "--log"]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=os.environ | {TOKEN: str(top)}
            )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        self.port = int(self.url.rpartition(":")[2])

    def requests(self) -> list[str]:
        """The paths of the blobs that were asked for, in order."""
        return re.findall(r"GET /(data/[0-9a-f/]+)", self._log.read_text())

    def answered(self) -> int:
        """How many requests it has logged, whatever they were for."""
        return self._log.read_text().count("GET /")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(_PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Host:
    """A machine as cvfs sees it: cache, state, sockets and logs below `top`; mounts by `engine`."""

    def __init__(self, top: Path, engine: str) -> None:
        self.top, self.engine = top, engine
        self.cache, self.logs = top / "cache", top / "log"
        self.environment = os.environ | {
            TOKEN: str(top),
            "CVFS_ROOT": str(trust().root),
            "CVFS_CACHE": str(self.cache),
            "CVFS_STATE_DIR": str(top / "state"),
            "CVFS_LOG_DIR": str(self.logs),
            "CVFS_RUNTIME_DIR": str(top / "run"),
            "PYTHONPATH": str(ROOT),
        }
        self._count = 0

    def cvfs(
        self, *arguments: str | bytes | Path, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command line `cvfs`."""
        return run(
            *PYTHON,
            "-m",
            "cvfs",
            *arguments,
            check=check,
            env=self.environment,
            **options,
        )

    def new_directory(self) -> Path:
        self._count += 1
        directory = self.top / f"mnt{self._count}"
        directory.mkdir()
        return directory

    def mount(self, url: str | Path, *options: str | Path, on: Path | None = None) -> Path:
        """The directory on which `url` is mounted from now on."""
        directory = on or self.new_directory()
        self.cvfs("mount", url, directory, "--engine", self.engine, *options)
        return directory

    def refused(self, url: str | Path, directory: Path, *options: str | Path, within_s: float = 15.0) -> str:
        """The line with which a mount is refused; nothing is left of it."""
        before = mounts_below(self.top), processes_of(self.top)
        started = time.monotonic()
        outcome = self.cvfs("mount", url, directory, "--engine", self.engine, *options, check=False)
        assert time.monotonic() - started < within_s
        after = mounts_below(self.top), processes_of(self.top)
        assert after == before, f"left behind: {after}"
        return error_line(outcome)

    def umount(self, directory: Path, *options: str) -> None:
        self.cvfs("umount", directory, *options)

    def remount(self, directory: Path, url: str | Path, *options: str | Path) -> Path:
        """Mounted anew: another process, and nothing in the kernel's caches."""
        self.umount(directory)
        return self.mount(url, *options, on=directory)

    def status(self, directory: Path) -> dict[str, Any]:
        answer = json.loads(self.cvfs("status", directory, "--json", check=False).stdout)
        mount: dict[str, Any] = answer["mounts"][0]
        return mount

    def log(self) -> str:
        """All that the daemons of this host have logged."""
        return "".join(path.read_text() for path in sorted(self.logs.glob("*.log")))

    def close(self) -> None:
        """End everything; raises if something could only be ended by force."""
        for directory in mounts_below(self.top):
            subprocess.run(["umount", "--lazy", directory], check=False)
        left = _end_all(self.top)
        assert not left, f"left behind: {left}"


def error_line(outcome: subprocess.CompletedProcess[bytes]) -> str:
    """The single line in which a command said what was wrong."""
    text = outcome.stderr.decode()
    assert outcome.returncode != 0, "it went well"
    assert "Traceback" not in text, text
    assert text.count("\n") == 1, text
    assert text.startswith("cvfs: error: "), text
    return text.strip()


def mounts_below(top: Path) -> list[str]:
    """Mount points below `top`, deepest first."""
    return list(map(str, mount_points(top)))


def processes_of(top: Path) -> dict[int, str]:
    """The living processes that a host below `top` has started: (pid: command line)."""
    mark = f"{TOKEN}={top}\0".encode()
    found = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{name}/environ").read_bytes():
                command = Path(f"/proc/{name}/cmdline").read_bytes()
                found[int(name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def kill(pid: int) -> None:
    """Kill a process and wait until it is gone."""
    with _process(pid) as descriptor:
        os.kill(pid, signal.SIGKILL)
        assert select.select([descriptor], [], [], _PATIENCE_S)[0]


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing for as long as the context."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _end_all(top: Path) -> dict[int, str]:
    """Wait for the processes of a host to end; those that did not are killed, and returned."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not processes_of(top))
    left = processes_of(top)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            kill(pid)
    return left
