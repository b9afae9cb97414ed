"""The disk of the cache hangs, and with it whoever writes there: he outlives SIGKILL."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host import Host, Store, run, wait_until
from tests.e2e.supervised import SMALL, fill, supervisor_of, workers

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("fsfreeze") and Path("/dev/loop-control").exists()),
    reason="needs root, fsfreeze and loop devices",
)


@pytest.fixture(scope="module")
def engine() -> str:
    """Only the channel has a supervisor."""
    return "channel"


@pytest.fixture
def disk(host: Host, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the cache of `host`."""
    image, directory = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    run("mkfs.ext4", "-q", image)
    directory.mkdir()
    run("mount", "-o", "loop", image, directory)
    host.environment["CVFS_CACHE"] = str(directory / "cache")
    yield directory
    run("umount", "--lazy", directory)


@contextlib.contextmanager
def _frozen(disk: Path) -> Iterator[None]:
    run("fsfreeze", "--freeze", disk)
    try:
        yield
    finally:
        run("fsfreeze", "--unfreeze", disk)


def test_worker_that_cannot_even_be_killed_is_not_waited_for(host: Host, disk: Path, store: Store, tree: Path) -> None:
    """Nor is its successor, which cannot start: callers get an error. No processor is kept busy, and with the disk all
    goes on."""
    fill(store, tree)
    host.environment |= {"CVFS_PING_S": "0.2", "CVFS_HANG_S": "1"}
    mount = host.mount(store.path)
    supervisor = supervisor_of(host, mount)
    (pid,) = workers(supervisor)
    with _frozen(disk):
        assert run("cat", mount / "d1/f1").stdout == SMALL["d1/f1"]
        wait_until(lambda: "D" in _states(pid))
        os.kill(pid, signal.SIGKILL)
        before = _wakeups(supervisor)
        assert b"Input/output error" in run("cat", mount / "d2/f2", check=False).stderr
        assert pid in workers(supervisor)
        assert _wakeups(supervisor) - before < 1000
    wait_until(lambda: _reads(mount), 60)
    assert pid not in workers(supervisor)
    assert all((mount / name).read_bytes() == data for name, data in SMALL.items())
    host.umount(mount)


def _states(pid: int) -> list[str]:
    """What the threads of a process do."""
    return [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]


def _wakeups(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def _reads(mount: Path) -> bool:
    try:
        return (mount / "d2/f2").read_bytes() == SMALL["d2/f2"]
    except OSError:
        return False
