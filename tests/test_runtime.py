"""The runtime directory: what is left there of mounts that are gone, and what is of those that are not."""

import os
import subprocess
from pathlib import Path

import pytest

from cvfs.mount.runtime import Runtime
from tests.e2e.host import wait_until

MOUNT_POINT = Path("/mnt")


@pytest.mark.parametrize("is_zombie", [False, True])
def test_only_the_files_of_processes_that_are_gone_are_dropped(tmp_path: Path, is_zombie: bool) -> None:
    runtime = Runtime(tmp_path)
    child = subprocess.Popen(["true"])
    if not is_zombie:
        child.wait()
    living, dead = (runtime.shown_of(MOUNT_POINT, pid) for pid in (os.getpid(), child.pid))
    other = tmp_path / f"metrics-0123456789abcdef.{child.pid}"
    for path in (living, dead):
        path.touch()
        path.with_suffix(".lock").touch()
    other.touch()
    wait_until(lambda: _ended(child.pid))
    runtime.prepare()
    child.wait()
    assert {*tmp_path.iterdir()} == {living, living.with_suffix(".lock"), other}


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_socket_nobody_listens_at_is_dropped_with_its_mount(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path)
    runtime.listen(MOUNT_POINT).close()
    living = runtime.shown_of(MOUNT_POINT, os.getpid())
    living.touch()
    runtime.drop(MOUNT_POINT)
    assert [*tmp_path.iterdir()] == [living]
    Runtime(tmp_path / "missing").drop(MOUNT_POINT)
