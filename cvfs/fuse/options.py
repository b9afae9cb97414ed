"""How a file system is mounted, whatever the engine."""

from typing import NamedTuple

FOREVER_S = 365 * 24 * 3600
"""For how long the kernel may keep names and attributes: until it is told otherwise, when the revision changes."""

REQUEST_DEADLINE_S = 90.0
"""After which every request of the kernel has its answer, if only ETIMEDOUT."""


def escaped(value: str) -> str:
    """As libfuse and fusermount3 want it among options that are separated by commas."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


class MountOptions(NamedTuple):
    """`source` is what df(1) shows as the device. With `allow_other` not only the user who mounts may enter (a plain
    user needs `user_allow_other` in /etc/fuse.conf). `suid` and `dev` let set-id bits and device files count (root
    only), as a root file system of a container needs. Programs run from it only if it is `executable`.

    `invalidation` is how the kernel is told of a new revision: "exact", name by name; "epoch", all names at once where
    it can do that; "auto", whichever is cheaper.
    `is_fleeting`: the kernel asks again about open files too, before it gives out their cached bytes, once the time for
    which their attributes hold has passed.
    `request_deadline_s` bounds every request of the kernel, on top of the deadlines of the fetches behind it.
    """

    source: str
    allow_other: bool = False
    suid: bool = False
    dev: bool = False
    executable: bool = True
    invalidation: str = "auto"
    is_fleeting: bool = False
    request_deadline_s: float = REQUEST_DEADLINE_S
