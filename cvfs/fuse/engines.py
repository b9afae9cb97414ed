"""Which Linux runs here, and so which engine: known before any mount could be asked by INIT. Imports nothing."""

import os
from typing import Final

OLDEST_RELEASE: Final = (5, 4)
"""For the channel; older ones have pyfuse3."""


def kernel_release() -> tuple[int, int]:
    """The running Linux, as (6, 18). What it can do is better asked of INIT (`protocol.negotiation.Session`)."""
    major, minor = os.uname().release.split("-")[0].split(".")[:2]
    return int(major), int(minor)


def choose_engine(name: str) -> str:
    """The engine that `name` means here: for "auto" the channel, which needs a Linux that is not too old for it."""
    if name != "auto":
        return name
    return "channel" if kernel_release() >= OLDEST_RELEASE else "pyfuse3"
