"""All mounts of this host that can be seen from here, with what their daemons say."""

import os
import time
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
    """The status of the mount on `directory`, or in a mount of many, of the repository that is shown there.

    Raises MountError if there is none of ours, or it does not know the repository.
    """
    mounted = find_mount(directory)
    if mounted is not None and is_ours(mounted):
        return _status(runtime, mounted)
    above = find_mount(directory.parent)
    if above is None or not is_ours(above):
        raise MountError(f"no repository is mounted on {directory}")
    whole = _status(runtime, above)
    for each in below(whole):
        if each["name"] == directory.name:
            return each
    raise MountError(f"no repository is mounted on {directory}, and {above.directory} shows none there")


def below(status: Status) -> list[Status]:
    """What is said of each repository of a mount of many, as if it were mounted there; of another, nothing."""
    top = status["mountpoint"]
    return [{**each, "mountpoint": f"{top}/{each['name']}"} for each in status.get("repositories", ())]


def why(status: Status) -> str:
    """Why the state of a mount, or of a repository, is not "ok"; empty if it is, or nobody has said."""
    if status["state"] in _FINE:
        return ""
    said = status.get("problem") or status.get("refresh_problem")
    if not said and status["state"] == "expired":
        return time.strftime("signed until %Y-%m-%d %H:%M:%S UTC", time.gmtime(status["trust"]["expires_s"]))
    return str(said or "")


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
    return {**status, "repositories": repositories, "state": worst, "problem": _problem_of(repositories)}


_WORST = ("expired", "failed", "offline")
_FINE = ("ok", "unused", FOREIGN)

_SAID = 3
"""Repositories of a mount whose problems its own names."""


def _problem_of(repositories: list[Status]) -> str:
    unwell = [each for each in repositories if each["state"] not in _FINE]
    said = [f"{each['name']}: {why(each) or each['state']}" for each in unwell[:_SAID]]
    return "; ".join([*said, f"and {len(unwell) - _SAID} more"] if len(unwell) > _SAID else said)


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
