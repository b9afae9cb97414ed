"""The real commands, each run with directories of its own: a store, a server on loopback, mounts, caches."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NAME = "benchmark.example.org"
_QUIET_S = 4.0
_SETTLED_BY_S = 60.0


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted repository: what its daemon says, and which processes serve it."""

    directory: Path
    sandbox: "Sandbox"

    def status(self) -> dict[str, Any]:
        answer = self.sandbox.command("cvfs", "status", str(self.directory), "--json")
        status: dict[str, Any] = json.loads(answer)["mounts"][0]
        return status

    def processes(self) -> list[int]:
        """All processes of the mount: its daemon, and what that has started."""
        return _family(self.status()["pid"])

    def settle(self) -> None:
        """Wait until the client has made files of the packs in its cache: until none came for some seconds."""
        deadline, since, before = time.monotonic() + _SETTLED_BY_S, time.monotonic(), -1
        while time.monotonic() < min(deadline, since + _QUIET_S):
            files = sum(1 for _ in (self.sandbox.cache / "objects").glob("??/*"))
            if files != before:
                since, before = time.monotonic(), files
            time.sleep(0.2)


class Sandbox:
    """A directory below `work` for one question; nothing of it is left afterwards."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.mount_point = directory / "mnt"
        self.mount_point.mkdir()
        self._env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CVFS_KEYS": str(directory / "keys"),
            "CVFS_ROOT": str(directory / "keys/root.json"),
            "CVFS_CACHE": str(directory / "cache"),
            "CVFS_STATE_DIR": str(directory / "state"),
            "CVFS_LOG_DIR": str(directory / "log"),
            "CVFS_RUNTIME_DIR": str(directory / "run"),
        }
        # As where it is installed: whatever this host thinks of bytecode, no start compiles the whole program.
        self._env.pop("PYTHONDONTWRITEBYTECODE", None)

    @property
    def cache(self) -> Path:
        return self.directory / "cache"

    def command(self, package: str, *arguments: str) -> str:
        """What `cvfs` or `publisher` prints. Raises CalledProcessError with what it said on stderr."""
        done = subprocess.run(
            self._argv(package, *arguments), env=self._env, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    def init(self) -> None:
        self.command("publisher", "init", str(self.store), "--name", NAME)

    def publish(self, tree: Path) -> dict[str, Any]:
        """The report of the publisher, with the seconds that the whole process took as "wall_s"."""
        started = time.perf_counter()
        text = self.command(
            "publisher", "publish", str(self.store), str(tree), "--json", "--state", str(self.directory / "publisher")
        )
        return {**json.loads(text), "wall_s": time.perf_counter() - started}

    def forget_store(self) -> None:
        """As before `init`."""
        for directory in (self.store, self.directory / "publisher", self.directory / "keys"):
            shutil.rmtree(directory, ignore_errors=True)

    def forget_cache(self) -> None:
        """As before the first mount. The files stay aside until the end: for minutes after so many are deleted, ext4
        takes twice as long to make new ones, since it passes over inodes that were freed lately."""
        for directory in (self.cache, self.directory / "state"):
            if directory.exists():
                directory.rename(self.directory / f"forgotten-{directory.name}-{time.monotonic_ns()}")

    @contextmanager
    def serve(self) -> Iterator[str]:
        """The embedded server, for as long as the context; its address."""
        argv = self._argv("publisher", "serve", str(self.store), "--port", "0")
        with subprocess.Popen(argv, env=self._env, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                words = server.stdout.readline().split()
                yield next(word for word in words if word.startswith("http"))
            finally:
                server.terminate()

    @contextmanager
    def mount(self, url: str, engine: str, *options: str) -> Iterator[Mount]:
        self.command("cvfs", "mount", url, str(self.mount_point), "--engine", engine, *options)
        try:
            yield Mount(self.mount_point, self)
        finally:
            self.command("cvfs", "umount", str(self.mount_point))

    def _argv(self, package: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", package, *arguments]


@contextmanager
def sandbox(work: Path) -> Iterator[Sandbox]:
    with TemporaryDirectory(prefix="run-", dir=work) as directory:
        made = Sandbox(Path(directory))
        try:
            yield made
        finally:
            if os.path.ismount(made.mount_point):
                subprocess.run(["umount", "--lazy", str(made.mount_point)], check=False)


def cpu_s(pid: int) -> float:
    """What a process has used so far, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(member for child in children for member in _family(int(child)))]
