"""A running mount changed from outside of it: to newly installed code, to a newer revision."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cvfs.errors import MountError
from cvfs.fuse.mountinfo import MountInfo, find_mount, is_mounted
from cvfs.mount.point import is_ours
from cvfs.mount.runtime import Runtime, ask

_DEADLINE_S = 90.0
"""Longer than a worker may take to start."""

_POLL_S = 0.02


def reload_mount(directory: Path, runtime: Runtime) -> dict[str, Any]:
    """Have the mount on `directory` served by the code that is installed now; its status then.

    Raises MountError: that code does not start; what served the mount goes on.
    """
    mounted = _mount_on(directory)
    path = runtime.socket_of(mounted.directory)
    engine = ask(path, "status")["engine"]
    if engine != "channel":
        what = f"the engine {engine} is one process; unmount it and mount it again"
        raise MountError(f"cannot reload {directory}: {what}")
    generation = ask(path, "reload")["generation"]
    return _wait(path, mounted, lambda status: status["generation"] > generation, "reload_problem")


def refresh_mount(directory: Path, runtime: Runtime) -> dict[str, Any]:
    """Have the mount on `directory` go on with the newest revision, or in a mount of many, the one repository that
    `directory` is the root of; the status of what was refreshed then. Raises MountError."""
    label = None
    mounted = find_mount(directory)
    if mounted is None or not is_ours(mounted):
        label, mounted = directory.name, find_mount(directory.parent)
    if mounted is None or not is_ours(mounted):
        raise MountError(f"no repository is mounted on {directory}")
    path = runtime.socket_of(mounted.directory)
    if label is not None and "repositories" not in ask(path, "status"):
        raise MountError(f"{directory} is not where a repository is mounted, but a directory of {mounted.directory}")
    about = _of(ask(path, "status"), label)
    if about.get("pinned"):
        raise MountError(f"{directory} is pinned to {about['pinned_to']}: to see another revision, mount that")
    asked = _Asked(path, label)
    asked.ask()
    status = _of(_wait(path, mounted, asked.is_done, None), label)
    if status["refresh_problem"]:
        raise MountError(f"cannot refresh {directory}: {status['refresh_problem']}")
    return status


class _Asked:
    """The workers that were asked to refresh, by pid, and how many refreshes each has to be beyond when it is done.

    Only one is asked, unless it is replaced meanwhile: then its successor, which knows nothing of it and counts anew.
    """

    def __init__(self, path: Path, label: str | None) -> None:
        self._path, self._label = path, label
        self._counts: dict[int, int] = {}

    def ask(self) -> None:
        """Raises MountError: it does not answer, or has no such repository."""
        named: dict[str, Any] = {} if self._label is None else {"repository": self._label}
        answer = ask(self._path, "refresh", **named)
        if answer["refreshes"] is None:
            raise MountError(f"no repository {self._label!r} is configured, or none of that name is in use")
        self._counts[answer["worker_pid"]] = answer["refreshes"]

    def is_done(self, status: dict[str, Any]) -> bool:
        """Raises MountError, as `ask`."""
        count = self._counts.get(status["worker_pid"])
        if count is None:
            self.ask()
            return False
        refreshes: int = _of(status, self._label)["refreshes"]
        return refreshes > count


def _of(status: dict[str, Any], label: str | None) -> dict[str, Any]:
    """What the status of a mount says of one of its repositories, by name; None: all of it."""
    if label is None:
        return status
    about = [each for each in status["repositories"] if each["name"] == label]
    return about[0] if about else {"refreshes": -1}


def _mount_on(directory: Path) -> MountInfo:
    mounted = find_mount(directory)
    if mounted is None or not is_ours(mounted):
        raise MountError(f"no repository is mounted on {directory}")
    return mounted


def _wait(
    path: Path, mounted: MountInfo, done: Callable[[dict[str, Any]], bool], problem: str | None
) -> dict[str, Any]:
    """The first status for which `done` holds. A worker that is being replaced may leave a question unanswered, and a
    socket that was removed is made anew."""
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        status: dict[str, Any] = {}
        with suppress(MountError):
            status = ask(path, "status")
            if done(status):
                return status
        if problem and status.get(problem):
            raise MountError(f"cannot reload: {status[problem]}")
        if not status and not path.exists() and not is_mounted(mounted.directory, mounted.device):
            raise MountError("the mount has ended meanwhile")
        time.sleep(_POLL_S)
    raise MountError(f"nothing has changed within {_DEADLINE_S:g} s; see the log of the mount")
