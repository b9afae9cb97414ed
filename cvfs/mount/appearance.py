"""What settings say of how a repository appears, and the variables that every host has."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cvfs.appearance import Appearance, Owners
from cvfs.config import Settings
from cvfs.config.kinds import OTHERS

_RELEASES = (Path("/etc/os-release"), Path("/usr/lib/os-release"))


def appearance_of(settings: Settings) -> Appearance:
    """Settings go before each other in this order: uid and gid, own, uid_map and gid_map."""
    uid, gid = settings.uid, settings.gid
    if settings.own:
        uid, gid = os.geteuid() if uid is None else uid, os.getegid() if gid is None else gid
    variables = preset_variables() | settings.variables
    return Appearance(
        _owners(uid, settings.uid_map),
        _owners(gid, settings.gid_map),
        {name.encode(): os.fsencode(text) for name, text in variables.items()},
    )


def _owners(one: int | None, by_id: Mapping[int, int]) -> Owners:
    return Owners(one, {key: to for key, to in by_id.items() if key != OTHERS}, by_id.get(OTHERS))


def preset_variables() -> dict[str, str]:
    """ARCH and KERNEL as `uname -m` and `uname -r` say, OS and OSVERSION as ID and VERSION_ID of os-release(5)."""
    system, release = os.uname(), dict(_release())
    return {
        "ARCH": system.machine,
        "KERNEL": system.release,
        "OS": release.get("ID", "linux"),
        "OSVERSION": release.get("VERSION_ID", ""),
    }


def _release() -> Iterator[tuple[str, str]]:
    for path in _RELEASES:
        try:
            lines = path.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition("=")
            yield name.strip(), value.strip().strip("\"'")
        return
