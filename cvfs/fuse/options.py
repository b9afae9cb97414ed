"""How a file system is mounted, whatever the engine."""

from dataclasses import dataclass

FOREVER_S = 365 * 24 * 3600
"""For how long the kernel may keep names and attributes: until it is told otherwise, when the revision changes."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """`source` is what df(1) shows as the device. Without `allow_other` only the user who mounts may look.

    `exact_invalidation`: when the revision changes, name every name to the kernel that is not what it was, though it
    could forget them all at once.
    `request_deadline_s` bounds every request of the kernel, on top of the deadlines of the fetches behind it.
    """

    source: str
    allow_other: bool = False
    suid: bool = False
    dev: bool = False
    exact_invalidation: bool = False
    request_deadline_s: float = 90.0
