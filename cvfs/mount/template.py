"""The process that workers are forked from. It knows what is to be mounted only when it has imported everything.

Forked by `cvfs mount` before that does anything else, so nothing is imported here before it is wanted;
`python -m cvfs.mount.template SOCKET` after a reload.
"""

import gc
import os
import signal
import socket
import sys
from typing import NoReturn

from cvfs.fuse import link


def run(connection: socket.socket) -> None:
    """Import, then fork workers until the supervisor at the other end of `connection` is gone."""
    gc.disable()  # as in `cvfs.mount.ahead`
    from cvfs.fuse.processes import STOP_SIGNALS

    for ignored in STOP_SIGNALS:  # the supervisor gets them too, and it decides
        signal.signal(ignored, signal.SIG_IGN)
    # First what compiles large regular expressions: from inside of many imports, CPython 3.11 grows and shrinks its
    # stack for each call of the compiler, which takes five times as long.
    import cvfs.transport  # noqa: F401
    from cvfs.fuse.forking import run_template
    from cvfs.heap import keep_freed_memory
    from cvfs.mount.channel_worker import work
    from cvfs.mount.daemon import settle
    from cvfs.mount.request import decode_request

    keep_freed_memory()
    first = link.receive(connection)
    if first is None:
        return
    log = first["descriptors"].get("log")
    if log is not None:
        settle(log)
    request = decode_request(first["request"])

    def leave() -> None:
        if log is not None:
            os.setsid()

    def work_on(worker: socket.socket) -> None:
        gc.enable()
        work(request, worker, leave)

    run_template(connection, work_on, leave)


def fork_template(inherited: socket.socket) -> tuple[int, socket.socket]:
    """A template: its process, and the connection to it. It closes what is `inherited` from the caller."""
    ours, theirs = link.pair()
    pid = os.fork()
    if pid == 0:
        inherited.close()
        ours.close()
        _be_template(theirs)
    theirs.close()
    return pid, ours


def _be_template(connection: socket.socket) -> NoReturn:
    status = 1
    try:
        run(connection)
        status = 0
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    run(socket.socket(fileno=int(sys.argv[1])))
