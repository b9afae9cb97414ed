"""The template: a process that has imported everything, and forks a worker whenever the supervisor wants one."""

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from cvfs.fuse import link

log = logging.getLogger(__name__)


def run_template(connection: socket.socket, work: Callable[[socket.socket], None], detach: Callable[[], None]) -> None:
    """Fork a worker whenever the supervisor at the other end of `connection` asks for one, until it is gone.

    `work` is what a worker does with its own connection to the supervisor; `detach()` is called when the mount can be
    used for the first time. Call it before there is any thread.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    gc.freeze()  # not collected before: imports leave little garbage, and to look for it takes 20 ms of each start
    while True:
        for ready in select.select([connection.fileno(), reader], [], [])[0]:
            if ready == reader:
                os.read(reader, 64)
                _report_ends(connection)
                continue
            message = link.receive(connection)
            if message is None:
                return
            if message["type"] == "started":
                detach()
            else:
                _fork(connection, message["descriptors"]["link"], work)


def _fork(connection: socket.socket, number: int, work: Callable[[socket.socket], None]) -> None:
    """The supervisor is told either way: it decides when to try again."""
    try:
        pid = os.fork()
    except OSError as error:  # no more processes, or no memory for one
        log.error("cannot fork a worker: %s", error.strerror)  # noqa: TRY400
        pid = 0
    else:
        if pid == 0:
            connection.close()
            _be_worker(number, work)
    os.close(number)
    link.send(connection, {"type": "forked", "pid": pid} if pid else {"type": "unforked"})


def _be_worker(number: int, work: Callable[[socket.socket], None]) -> NoReturn:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        work(socket.socket(fileno=number))
        status = 0
    except SystemExit as end:  # it has said why
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        log.exception("a worker ended with an unexpected error")
    finally:
        sys.stderr.flush()
        os._exit(status)


def _report_ends(connection: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            link.send(connection, {"type": "ended", "pid": pid, "status": status})
