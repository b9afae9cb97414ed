"""Whether a caller that was sent a signal still waits for its answer.

The kernel sends an INTERRUPT for any signal, and has only EINTR to give to the caller then. From a local file system no
signal does that: one that a program catches, as timers, children that end and the run time of Go send them all the
time, is handled when the call is done. So only those who are to end, or are asked to, get that error.
"""

import os
import re
import signal
from typing import Final

_MASKS: Final = re.compile(rb"^(SigPnd|ShdPnd|SigBlk|SigCgt):\s+([0-9a-f]+)$", re.MULTILINE)


def _mask(*signals: signal.Signals) -> int:
    return sum(1 << number - 1 for number in signals)


_KILL: Final = _mask(signal.SIGKILL)
_REQUESTS: Final = _mask(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""To end: also a program that catches them wants to have them now."""

_HARMLESS: Final = _mask(
    *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT),
    *(signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH),
)
"""Where nobody catches them these end nothing: who is stopped waits on afterwards."""


def has_given_up(thread: int) -> bool:
    """Whether a thread of any process is to have EINTR now. One that cannot be looked at is, and the kernel's 0."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # /proc has the numbers of another namespace
            return True
        with open(f"/proc/{thread}/status", "rb") as status:
            masks = {name: int(mask, 16) for name, mask in _MASKS.findall(status.read())}
        pending, blocked, caught = masks[b"SigPnd"] | masks[b"ShdPnd"], masks[b"SigBlk"], masks[b"SigCgt"]
    except (OSError, KeyError):
        return True
    ending = _REQUESTS | (~caught & ~_HARMLESS)
    return bool(pending & (_KILL | (ending & ~blocked)))
