"""A command with repositories of its own: three processes.

The one that was called makes the namespaces and waits. Its child is the first process of the PID namespace: it mounts,
waits for the command, and when it ends the kernel ends every process in there, the servers of the mounts too, and with
the last one the mounts are gone. It is killed when its parent is, so nothing is left however this ends.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from cvfs.errors import CvfsError, MountError
from cvfs.rootless.namespaces import become, die_with_parent, enter_namespaces, mount, own_mounts
from cvfs.rootless.root import prepare_root

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit statuses for a command that cannot be run, as shells have them."""

_PASSED_ON: Final = frozenset(
    {
        *(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGALRM, signal.SIGCONT),
    }
)
_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT})
"""What ends this before there is a command that could decide about it."""

_SI_KERNEL: Final = 0x80
"""Sent by the terminal, to the whole foreground group: the command has got it by itself."""

Signals = set[int | signal.Signals]
_PYTHON_IGNORES: Final = (signal.SIGPIPE, signal.SIGXFSZ)


class Session(NamedTuple):
    """What is to be run: `command` with the environment of this process, after `mounts`, which are command lines by the
    directory that they mount on, with `environment`; `runtime` is the directory of their control sockets."""

    command: Sequence[str]
    mounts: Mapping[Path, Sequence[str]]
    environment: Mapping[str, str]
    runtime: Path


def run_session(session: Session) -> int:
    """The exit status of the command; 128 + N if signal N ended it. Raises MountError: no namespaces here."""
    user, directory = (os.geteuid(), os.getegid()), os.getcwd()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON | {signal.SIGCHLD})
    with _terminal_kept():
        enter_namespaces()
        caller = os.pidfd_open(os.getpid())
        first = os.fork()
        if not first:
            _be_first(session, user, directory, before, caller)
        return _wait_for(first)


@contextlib.contextmanager
def _terminal_kept() -> Iterator[None]:
    """A shell in the namespace cannot give the terminal back to a process group that it does not see."""
    try:
        owner = os.tcgetpgrp(0)
    except OSError:
        owner = -1
    yield
    if owner == os.getpgrp():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        with contextlib.suppress(OSError):
            os.tcsetpgrp(0, owner)


def _be_first(session: Session, user: tuple[int, int], directory: str, mask: Signals, caller: int) -> NoReturn:
    """The life of the first process of the PID namespace."""
    status = 1
    try:
        die_with_parent()
        if not select.select([caller], [], [], 0)[0]:
            status = _mount_and_run(session, user, directory, mask)
    except (CvfsError, OSError) as error:
        sys.stderr.write(f"cvfs: error: {error}\n")
    finally:
        os._exit(status)


def _mount_and_run(session: Session, user: tuple[int, int], directory: str, mask: Signals) -> int:
    """The exit status. Raises MountError, OSError."""
    own_mounts()
    prepare_root([*session.mounts, session.runtime])
    mount("tmpfs", session.runtime, "tmpfs", 0, "mode=0700")
    with contextlib.suppress(OSError):  # it may be in a repository
        os.chdir(directory)
    failed = _mount_all(session, mask)
    if failed:
        return failed
    try:
        os.chdir(directory)
    except OSError as error:
        raise MountError(f"the current directory {directory} cannot be seen from there: {error.strerror}") from None
    command = os.fork()
    if not command:
        _become_command(session.command, user, mask)
    return _wait_for(command)


def _mount_all(session: Session, mask: Signals) -> int:
    """Have all repositories mounted, at the same time. 0, or an exit status: what went wrong was said by the mounts."""
    servers = [
        subprocess.Popen(
            line,
            env=session.environment,
            stdin=subprocess.DEVNULL,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),  # noqa: PLW1509 - one thread
        )
        for line in session.mounts.values()
    ]
    while None in [server.poll() for server in servers]:
        number = signal.sigwait(_ENDING | {signal.SIGCHLD})
        if number != signal.SIGCHLD:
            return 128 + number
    return int(any(server.returncode for server in servers))


def _become_command(command: Sequence[str], user: tuple[int, int], mask: Signals) -> NoReturn:
    status = NOT_EXECUTABLE
    try:
        become(*user)
        for number in _PYTHON_IGNORES:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvp(command[0], list(command))  # noqa: S606
    except (CvfsError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        sys.stderr.write(f"cvfs: error: cannot run {command[0]}: {reason}\n")
        status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    finally:
        os._exit(status)


def _wait_for(pid: int) -> int:
    """The exit status of a child, to which signals are passed on meanwhile."""
    while True:
        received = signal.sigwaitinfo(_PASSED_ON | {signal.SIGCHLD})
        if received.si_signo != signal.SIGCHLD:
            if received.si_code != _SI_KERNEL or _is_ours_alone(received.si_signo):
                os.kill(pid, received.si_signo)
            continue
        status = _reap(pid)
        if status is not None:
            return status if status >= 0 else 128 - status


def _is_ours_alone(number: int) -> bool:
    """A terminal that is closed tells it to the leader of its session, and leaves the rest to that."""
    return number == signal.SIGHUP and os.getsid(0) == os.getpid()


def _reap(pid: int) -> int | None:
    """Take note of all children that have ended; the exit code of `pid` if it is among them."""
    ended = None
    while True:
        try:
            found, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if found == 0:
            return ended
        if found == pid:
            ended = os.waitstatus_to_exitcode(status)
