"""The command `cvfs` as a user types it, on a host of the test's own: its directories, its processes, its mounts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.mounts import mount_points

_DIRECTORIES = ("CVFS_CACHE", "CVFS_STATE_DIR", "CVFS_RUNTIME_DIR", "CVFS_LOG_DIR")
ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 40.0
NOTHING: Mapping[str, str] = {}


class Command:
    """`cvfs`, with all that it keeps below `top`."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.cache, self.state, self.runtime, self.logs = (top / name.lower() for name in _DIRECTORIES)
        self.environment = os.environ | {name: str(top / name.lower()) for name in _DIRECTORIES}
        self.environment["PYTHONPATH"] = str(ROOT)

    def __call__(
        self, *arguments: str | bytes | Path, extra: Mapping[str, str] = NOTHING
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end, whatever that is; `extra` goes into its environment."""
        return subprocess.run(
            self.line(*arguments),
            check=False,
            env={**self.whole_environment, **extra},
            capture_output=True,
            timeout=DEADLINE_S,
        )

    @property
    def whole_environment(self) -> dict[str, str]:
        """With the root of the store beside which this host is, if there is one."""
        root = self.top / "root.json"
        return self.environment | ({"CVFS_ROOT": str(root)} if root.exists() else {})

    def line(self, *arguments: str | bytes | Path) -> list[str | bytes | Path]:
        return [sys.executable, "-bb", "-m", "cvfs", *arguments]

    def ok(self, *arguments: str | bytes | Path, extra: Mapping[str, str] = NOTHING) -> bytes:
        """What it prints; it must succeed and have nothing to complain of."""
        outcome = self(*arguments, extra=extra)
        assert (outcome.returncode, outcome.stderr) == (0, b""), outcome
        return outcome.stdout

    def refused(self, *arguments: str | bytes | Path, status: int = 1) -> str:
        """The one line in which it says why not."""
        outcome = self(*arguments)
        assert outcome.returncode == status, outcome
        assert outcome.stdout == b""
        (line,) = outcome.stderr.decode().splitlines()
        assert line.startswith("cvfs: error: ")
        return line.removeprefix("cvfs: error: ")

    def closed(self, closed: str, *arguments: str | bytes | Path) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end as a shell does with `closed`: "<&-" without standard input, ">&-" without output..."""
        line = ["sh", "-c", f'exec "$@" {closed}', "sh", *self.line(*arguments)]
        return subprocess.run(line, check=False, env=self.whole_environment, capture_output=True, timeout=DEADLINE_S)

    def start(self, *arguments: str | bytes | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Run it beside the test."""
        return subprocess.Popen(self.line(*arguments), env=self.whole_environment, **options)

    def status(self, directory: Path) -> dict[str, Any]:
        """What `cvfs status --json` says of the mount on `directory`."""
        (mount,) = json.loads(self("status", directory, "--json").stdout)["mounts"]
        assert isinstance(mount, dict)
        return mount

    def log(self) -> str:
        return "".join(path.read_text() for path in self.logs.glob("*"))

    def processes(self) -> list[int]:
        """Those that were started here and have not ended."""
        mark = f"CVFS_RUNTIME_DIR={self.runtime}".encode()
        return [pid for pid in _pids() if mark in _environment(pid).split(b"\0") and pid != os.getpid()]

    def kill_all(self, supervisor: int) -> None:
        """Kill all processes, `supervisor` in a way that it can do nothing about the others."""
        os.kill(supervisor, signal.SIGSTOP)
        for pid in [*(pid for pid in self.processes() if pid != supervisor), supervisor]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.processes())

    def mounts(self) -> list[Path]:
        return mount_points(self.top)

    def leftovers(self) -> list[object]:
        """What a command that has ended must not leave: mounts, processes, sockets."""
        return [*self.mounts(), *self.processes(), *self.runtime.glob("*")]

    def clean_up(self) -> None:
        for mount in self.mounts():
            subprocess.run(["umount", "--lazy", mount], check=True)
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Return once `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
