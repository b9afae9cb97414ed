"""The units of contrib/systemd under a real systemd, the first process of a machine of their own."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.booted import Booted
from tests.e2e.host import NAME, PYTHON, ROOT, Server, Store, trust, wait_until

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("systemd-nspawn"), reason="needs root and systemd-nspawn"
)

STORE = Path("/srv/software")
KEYS = Path("/etc/cvfs-publisher/timestamp")
_CVFS = ("env", f"PYTHONPATH={ROOT}", *PYTHON, "-m", "cvfs")
FAST = "[Service]\nWatchdogSec=2\nRestartSec=100ms\n"


class Machine(Booted):
    """One that mounts a repository at boot, as docs/operations.md has it."""

    unit = "cvfs@software"
    mount = tree = Path("/cvfs/software")

    def set_up(self, url: str, root: Path) -> None:
        self(*_CVFS, "setup")
        self.configure(url, root)
        self.write(f"/etc/systemd/system/{self.unit}.service.d/fast.conf", FAST)
        self("systemctl", "daemon-reload")

    def configure(self, url: str, root: Path) -> None:
        self.write("/etc/cvfs/mounts/software.conf", f"URL={url}\nDIRECTORY={self.mount}\nOPTIONS=--root {root}\n")

    def status(self) -> dict[str, Any]:
        answer = self(*_CVFS, "status", "--json", self.mount)
        status: dict[str, Any] = json.loads(answer.stdout)["mounts"][0]
        return status

    def ask(self, name: str) -> str:
        """What systemd says of a property of the unit."""
        return self("systemctl", "show", "--value", f"--property={name}", self.unit).stdout.decode().strip()

    def kill(self, signal: str, pid: int) -> None:
        self("kill", f"-{signal}", str(pid))

    def reads(self) -> bool:
        return self("cat", self.tree / "hello", check=False).stdout == b"hello\n"

    def restarted(self, times: int) -> bool:
        return self.ask("NRestarts") == str(times) and self.ask("ActiveState") == "active" and self.reads()


class MachineOfAll(Machine):
    """One that mounts all repositories at boot."""

    unit = "cvfs-all"
    mount = Path("/cvfs")
    tree = mount / NAME

    def configure(self, url: str, root: Path) -> None:
        self.write(f"/etc/cvfs/repositories.d/{NAME}.toml", f'url = "{url}"\nroot = "{root}"\n')


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/hello").write_text("hello\n")
    store = Store(tmp_path / "store")
    store.publish(tmp_path / "tree")
    return store


def root_in(top: Path) -> Path:
    """The root of trust where a machine sees it."""
    return Path(shutil.copy(trust().root, top / "root.json"))


@pytest.fixture
def machine(store: Store, tmp_path: Path) -> Iterator[Machine]:
    with Server(store.path, tmp_path) as server, contextlib.closing(Machine(tmp_path)) as machine:
        machine.set_up(server.url, root_in(tmp_path))
        yield machine


def test_units(machine: Machine, store: Store) -> None:
    _mount(machine)
    _live_and_stop(machine)
    _resign(machine, store)


def _live_and_stop(machine: Machine) -> None:
    """All that may happen to a unit that is started."""
    _lose_a_worker(machine)
    _reload(machine)
    _lose_the_supervisor(machine)
    _watchdog(machine)
    _lose_everything(machine)
    _stop(machine)


def _mount(machine: Machine) -> None:
    machine("systemctl", "enable", "--now", machine.unit)
    assert machine.reads()
    assert machine.ask("ActiveState") == "active"
    assert machine.ask("StatusText") == f"serving revision 1 of e2e.example.org on {machine.mount}"
    assert machine.status()["pid"] == int(machine.ask("MainPID"))
    assert machine.status()["log"] == "standard error"
    assert "mounted revision 1" in machine.journal()


def _lose_a_worker(machine: Machine) -> None:
    before = machine.status()
    machine.kill("KILL", before["worker_pid"])
    assert machine.reads()
    after = machine.status()
    assert (after["pid"], after["restarts"]) == (before["pid"], 1)
    assert after["worker_pid"] != before["worker_pid"]
    assert machine.ask("NRestarts") == "0"


def _reload(machine: Machine) -> None:
    before = machine.status()
    machine("systemctl", "reload", machine.unit)
    after = machine.status()
    assert after["pid"] == before["pid"]
    assert after["generation"] == before["generation"] + 1


def _lose_the_supervisor(machine: Machine) -> None:
    machine.kill("KILL", machine.status()["pid"])
    wait_until(lambda: machine.restarted(1), 30)


def _watchdog(machine: Machine) -> None:
    """It is fed while all is well, also while nothing is asked of the mount; who does not feed it is replaced."""
    fed = int(machine.ask("WatchdogTimestampMonotonic"))
    wait_until(lambda: int(machine.ask("WatchdogTimestampMonotonic")) >= fed + 2_500_000, 30)
    assert machine.ask("NRestarts") == "1"
    machine.kill("STOP", machine.status()["pid"])
    wait_until(lambda: machine.restarted(2), 30)
    assert "watchdog" in machine.journal().lower()


def _lose_everything(machine: Machine) -> None:
    """Nobody is left to unmount, and the kernel remembers nothing of the mount: the next one clears it away."""
    machine("systemctl", "restart", machine.unit)
    for signal in ("STOP", "KILL"):  # so that none of them can do anything about the death of another
        machine("systemctl", "kill", f"--signal={signal}", machine.unit)
    wait_until(lambda: machine.restarted(1), 30)


def _stop(machine: Machine) -> None:
    machine("systemctl", "stop", machine.unit)
    assert machine.ask("ActiveState") == "inactive"
    assert machine.ask("Result") == "success"
    assert str(machine.mount) not in machine("cat", "/proc/self/mounts").stdout.decode()
    assert machine("sh", "-c", "ls /run/cvfs").stdout == b""


def _resign(machine: Machine, store: Store) -> None:
    machine("mkdir", "-p", KEYS)
    machine("cp", store.keys / "timestamp.pem", store.keys / "root.json", KEYS)
    machine("cp", "-r", store.path, STORE)
    machine.write("/etc/cvfs-publisher/resign.conf", f"STORE={STORE}\nKEYS={KEYS}\n")
    # The interpreter of a test may be in a home or in /tmp, which the unit closes.
    seen = " ".join({sys.prefix, sys.base_prefix, str(ROOT)})
    closed = f"[Service]\nProtectHome=tmpfs\nBindReadOnlyPaths={seen}\n"
    machine.write("/etc/systemd/system/cvfs-publisher-resign.service.d/seen.conf", closed)
    machine("systemctl", "daemon-reload")
    before = _version(machine)
    machine("systemctl", "enable", "--now", "cvfs-publisher-resign.timer")
    assert b"cvfs-publisher-resign.timer" in machine("systemctl", "list-timers").stdout
    machine("systemctl", "start", "cvfs-publisher-resign.service")
    assert _version(machine) == before + 1


def test_unit_of_all(store: Store, tmp_path: Path) -> None:
    """One unit, no file for it: every configured repository on /cvfs, which it makes."""
    with Server(store.path, tmp_path) as server, contextlib.closing(MachineOfAll(tmp_path)) as machine:
        machine.set_up(server.url, root_in(tmp_path))
        _mount_all(machine)
        _run_with_all(machine)
        _live_and_stop(machine)
        _run_with_all(machine)  # its directory is there still


def _mount_all(machine: Machine) -> None:
    assert machine("ls", "-d", machine.mount, check=False).returncode != 0
    machine("systemctl", "enable", "--now", machine.unit)
    assert machine("ls", machine.mount).stdout.decode().split() == [NAME]
    assert machine.reads()
    assert machine.ask("ActiveState") == "active"
    assert machine.ask("StatusText").endswith(f" on {machine.mount}")
    assert machine.status()["pid"] == int(machine.ask("MainPID"))
    assert machine.status()["log"] == "standard error"


def _run_with_all(machine: Machine) -> None:
    """`cvfs run` brings its own mounts, whatever the machine has on /cvfs."""
    machine("test", "-d", machine.mount)
    script = f"ls {machine.mount}; grep -c ' {machine.mount} ' /proc/self/mounts"
    assert machine(*_CVFS, "run", "--all", "--", "sh", "-c", script).stdout.decode().split() == [NAME, "1"]


def _version(machine: Machine) -> int:
    version: int = json.loads(machine("cat", STORE / "metadata/timestamp.json").stdout)["signed"]["version"]
    return version
