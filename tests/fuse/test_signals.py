"""Which signals end a call that waits: those of real threads."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cvfs.fuse.signals import has_given_up

PROGRAM = """
import signal, sys, threading, time
for name in sys.argv[1:]:
    signal.signal(getattr(signal, name), lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [])
print(flush=True)
time.sleep(100)
"""


@contextlib.contextmanager
def stopped(*caught: str) -> Iterator[int]:
    """A process that cannot take what is sent to it: it is stopped."""
    words = [sys.executable, "-c", PROGRAM, *caught]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("sent", "is_caught", "gives_up"),
    [
        ("SIGALRM", True, False),
        ("SIGUSR1", True, False),
        ("SIGURG", True, False),
        ("SIGCHLD", True, False),
        ("SIGTSTP", False, False),
        ("SIGINT", True, True),
        ("SIGTERM", True, True),
        ("SIGQUIT", False, True),
        ("SIGUSR1", False, True),
    ],
)
def test_signal(sent: str, is_caught: bool, gives_up: bool) -> None:
    with stopped(*([sent] if is_caught else [])) as process:
        assert not has_given_up(process)
        os.kill(process, getattr(signal, sent))
        assert has_given_up(process) is gives_up


def test_who_cannot_be_looked_at() -> None:
    assert has_given_up(0)
    assert has_given_up(1 << 30)
