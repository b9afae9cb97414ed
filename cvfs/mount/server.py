"""The server of a mount, from its birth in `cvfs mount` on: it gets ready before it knows what is to be mounted."""

import contextlib
import gc
import json
import os
import signal
import socket

from cvfs.fuse import link
from cvfs.fuse.processes import Template
from cvfs.fuse.release import OLDEST_RELEASE, kernel_release
from cvfs.mount.daemon import Caller, close_inherited


def serve(guess: str, connection: socket.socket, command: int | None) -> int:
    """Mount what the command at the other end of `connection` asks for, serve it; the exit status.

    `guess` is the engine that will be asked for, as far as one can tell: a wrong one costs time. `command` is a child.
    """
    if command is None:
        close_inherited(connection.fileno())
    template = _get_ready(guess, connection)
    caller = Caller(connection, command)
    text = caller.receive()
    if text is None:
        _drop(template)
        return caller.wait()
    try:
        return _serve(text, caller, template, connection)
    finally:
        caller.end()


def _serve(text: str, caller: Caller, template: Template | None, connection: socket.socket) -> int:
    if choose_engine(json.loads(text)["settings"]["engine"]) == "channel":
        from cvfs.mount import supervise

        return supervise.serve(text, caller, template or _fork_template(connection))
    from cvfs.mount import worker

    _drop(template)
    return worker.serve(text, caller)


def choose_engine(name: str) -> str:
    """The engine that `name` means here: for "auto" the channel, which needs a Linux that is not too old for it."""
    if name != "auto":
        return name
    return "channel" if kernel_release() >= OLDEST_RELEASE else "pyfuse3"


def _get_ready(guess: str, connection: socket.socket) -> Template | None:
    """Import. The channel's template does it in a process of its own, beside this one."""
    if choose_engine(guess) != "channel":
        gc.disable()  # imports make no garbage: looking for it costs them a tenth of their time
        import cvfs.transport  # noqa: I001 (first, as in `cvfs.mount.template`)
        import cvfs.mount.worker

        with contextlib.suppress(ImportError):  # then it says so when it is wanted
            import cvfs.fuse.pyfuse3_engine
        gc.freeze()
        gc.enable()
        return None
    template = _fork_template(connection)
    import cvfs.mount.supervise  # noqa: F401

    return template


def _fork_template(connection: socket.socket) -> Template:
    ours, theirs = link.pair()
    pid = os.fork()
    if pid == 0:
        connection.close()
        ours.close()
        from cvfs.mount.template import run_forked

        run_forked(theirs)
    theirs.close()
    return Template(pid, ours)


def _drop(template: Template | None) -> None:
    if template is not None:
        os.kill(template.pid, signal.SIGKILL)
        os.waitpid(template.pid, 0)
