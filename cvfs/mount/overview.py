"""All mounts of this host that can be seen from here, with what their daemons say."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from cvfs.errors import MountError
from cvfs.fuse.mountinfo import MountInfo, find_mount, parse_mounts
from cvfs.mount.point import is_dead, is_ours, owner_of
from cvfs.mount.runtime import Runtime, ask

Status = dict[str, Any]

FOREIGN = "foreign"
"""The state of a mount that is somebody else's: nothing can be said of its health, so it counts for nothing."""


def list_mounts(runtime: Runtime) -> list[Status]:
    """The status of each cvfs mount, by mount point."""
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_bytes())
    ours = {mount.directory: mount for mount in mounts if is_ours(mount)}
    with ThreadPoolExecutor(max_workers=32) as pool:  # one that does not answer must not delay the others
        return list(pool.map(partial(_status, runtime), [ours[directory] for directory in sorted(ours)]))


def mount_at(directory: Path, runtime: Runtime) -> Status:
    """The status of the mount on `directory`. Raises MountError if there is none of ours."""
    mounted = find_mount(directory)
    if mounted is None or not is_ours(mounted):
        raise MountError(f"no repository is mounted on {directory}")
    return _status(runtime, mounted)


def _status(runtime: Runtime, mounted: MountInfo) -> Status:
    """What the daemon says, with a "state": ok, offline, expired, failed (some repository of many cannot be opened), or
    why it says nothing. Of many it is the worst that is said of one."""
    socket = runtime.socket_of(mounted.directory)
    try:
        status = ask(socket, "status")
    except MountError as error:
        state, problem = _why_silent(mounted, socket, error)
        return {"mountpoint": str(mounted.directory), "url": mounted.source, "state": state, "problem": problem}
    if "repositories" not in status:
        return {**status, "state": _state(status)}
    repositories = [{**each, "state": _state(each)} for each in status["repositories"]]
    states = {each["state"] for each in repositories}
    worst = next((state for state in _WORST if state in states), "ok")
    return {**status, "repositories": repositories, "state": worst}


_WORST = ("expired", "failed", "offline")


def _state(about: Status) -> str:
    """What a repository that was opened is; "unused" and "failed" is what it says of itself."""
    if "state" in about:
        return str(about["state"])
    return "expired" if about.get("trust", {}).get("expired") else "offline" if about.get("offline") else "ok"


def _why_silent(mounted: MountInfo, socket: Path, error: MountError) -> tuple[str, str]:
    """(state, problem) of a mount whose daemon did not answer."""
    if is_dead(mounted.directory):
        return "dead", "its process is gone: unmount it (cvfs umount)"
    if not socket.exists() and owner_of(mounted) != os.geteuid():
        return FOREIGN, "another user's"
    return "unknown", f"its process does not answer: {error}"
