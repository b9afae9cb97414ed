"""Which Linux runs here: what has to be known before there is a mount whose INIT could be asked. Imports nothing."""

import os
from typing import Final

OLDEST_RELEASE: Final = (5, 4)
"""For the channel; older ones have pyfuse3."""


def kernel_release() -> tuple[int, int]:
    """The running Linux, as (6, 18). What it can do is better asked of INIT (`protocol.negotiation.Session`)."""
    major, minor = os.uname().release.split("-")[0].split(".")[:2]
    return int(major), int(minor)
