"""The runtime directory: what is left there of mounts that are gone, and what is of those that are not."""

import os
import subprocess
from pathlib import Path

from cvfs.mount.runtime import Runtime

MOUNT_POINT = Path("/mnt")


def test_only_the_files_of_processes_that_are_gone_are_dropped(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path)
    child = subprocess.Popen(["true"])
    child.wait()
    living, dead = (runtime.shown_of(MOUNT_POINT, pid) for pid in (os.getpid(), child.pid))
    other = tmp_path / f"metrics-0123456789abcdef.{child.pid}"
    for path in (living, dead):
        path.touch()
        path.with_suffix(".lock").touch()
    other.touch()
    runtime.prepare()
    assert {*tmp_path.iterdir()} == {living, living.with_suffix(".lock"), other}


def test_a_socket_nobody_listens_at_is_dropped_with_its_mount(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path)
    runtime.listen(MOUNT_POINT).close()
    living = runtime.shown_of(MOUNT_POINT, os.getpid())
    living.touch()
    runtime.drop(MOUNT_POINT)
    assert [*tmp_path.iterdir()] == [living]
    Runtime(tmp_path / "missing").drop(MOUNT_POINT)
