"""A mount in the background: a forked process, and a pipe on which it says that it is ready, or why it is not.

Forked, and before anything heavy is imported or any thread started, rather than started anew: that would cost another
start of the interpreter. The caller waits for the end of what failed, so that nothing is left of it.
"""

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from cvfs.errors import ConfigError, CvfsError, MountError

DEADLINE_S = 60.0
"""For the daemon to say anything. Its own deadlines are far shorter: this is for one that hangs."""

_END_DEADLINE_S = 10.0

Work = Callable[[Callable[[list[str]], None]], None]
"""Serves until the end; calls its argument once, with warnings for the user, when the mount can be used."""


def run_in_background(work: Work, log_file: Path, *, keep_group: bool = False) -> list[str]:
    """Run `work` in a daemon that logs to `log_file`; returns its warnings when it is ready.

    `keep_group`: it is for `work` to leave the caller's process group.

    Raises MountError with what went wrong; then the daemon has ended.
    """
    return _run(lambda writer: work(lambda warnings: _say(writer, {"warnings": warnings})), log_file, keep_group)


def exec_in_background(work: Callable[[int], NoReturn], log_file: Path, *, keep_group: bool = False) -> list[str]:
    """As `run_in_background`, with `work` becoming another program, which says on the descriptor that it is given
    what has become of the mount: {"warnings": [...]} or {"error": "..."}, one line of JSON."""

    def become(writer: int) -> NoReturn:
        os.set_inheritable(writer, True)
        work(writer)

    return _run(become, log_file, keep_group)


def _run(work: Callable[[int], None], log_file: Path, keep_group: bool) -> list[str]:
    log = _open_log(log_file)
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _be_daemon(work, writer, log, log_file, keep_group)
    os.close(writer)
    os.close(log)
    try:
        return _wait_until_ready(pid, reader, log_file)
    except BaseException:
        _end(pid)
        raise
    finally:
        os.close(reader)


def _open_log(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY, 0o640)
    except OSError as error:
        raise ConfigError(f"cannot log to {path}: {error.strerror}; name another file with --log-file") from None


def _be_daemon(work: Callable[[int], None], writer: int, log: int, log_file: Path, keep_group: bool) -> NoReturn:
    status = 1
    try:
        if not keep_group:
            os.setsid()
        _detach(writer, log)
        work(writer)
        status = 0
    except CvfsError as error:
        _say(writer, {"error": str(error)})
    except BaseException:
        import logging

        logging.getLogger(__name__).exception("the mount ended with an unexpected error")
        _say(writer, {"error": f"unexpected error, please report it: the traceback is in {log_file}"})
    finally:
        # Not sys.exit: what the parent has registered for its end, and its buffers, are not ours.
        os._exit(status)


def _detach(writer: int, log: int) -> None:
    """Leave the caller's directory, terminal and descriptors."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError as error:
        raise MountError(f"cannot go to the background: {os.devnull}: {error.strerror}") from None
    os.chdir("/")
    os.umask(0o077)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor != writer:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _say(writer: int, message: dict[str, Any]) -> None:
    """The one message to the parent; what comes after it is not heard any more."""
    with contextlib.suppress(OSError):
        os.write(writer, json.dumps(message).encode() + b"\n")
        os.close(writer)


def _wait_until_ready(pid: int, reader: int, log_file: Path) -> list[str]:
    message = _receive(reader)
    if message is None:
        raise MountError(f"the mount did not become ready within {DEADLINE_S:g} s; see {log_file}")
    if not message:
        raise MountError(f"the process that should serve the mount died; see {log_file}")
    answer = json.loads(message)
    if "error" in answer:
        raise MountError(answer["error"])
    warnings: list[str] = answer["warnings"]
    return warnings


def _receive(reader: int) -> bytes | None:
    """The line that comes; empty if the daemon ended before, None if it is late."""
    deadline = time.monotonic() + DEADLINE_S
    message = b""
    while not message.endswith(b"\n"):
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        data = os.read(reader, 65536)
        if not data:
            return b""
        message += data
    return message


def _end(pid: int) -> None:
    """Wait for the daemon to end, which it does by itself after an error; after a while make it."""
    for number, patience_s in ((signal.SIGTERM, _END_DEADLINE_S), (signal.SIGKILL, 1.0)):
        if _has_ended(pid, 0.5):
            return
        os.kill(pid, number)
        if _has_ended(pid, patience_s):
            return


def _has_ended(pid: int, patience_s: float) -> bool:
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], patience_s)[0]:
            return False
    finally:
        os.close(descriptor)
    os.waitpid(pid, 0)
    return True
