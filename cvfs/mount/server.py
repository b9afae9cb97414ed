"""The server of a mount, from its birth in `cvfs mount` on: it gets ready before it knows what is to be mounted."""

import contextlib
import gc
import json
import os
import signal
import socket

from cvfs.fuse.engines import choose_engine
from cvfs.fuse.processes import Template
from cvfs.mount.daemon import Caller
from cvfs.mount.template import fork_template


def serve(forked: tuple[int, socket.socket] | None, connection: socket.socket, command: int | None) -> int:
    """Mount what the command at the other end of `connection` asks for, serve it; the exit status.

    `forked` is the template, and there is none if it looks as if another engine than the channel will be asked for: to
    be wrong costs time. `command` is a child.
    """
    template = None if forked is None else Template(*forked)
    _get_ready(template)
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
        from cvfs.mount import channel_server

        return channel_server.serve(text, caller, template or Template(*fork_template(connection)))
    from cvfs.mount import pyfuse3_server

    _drop(template)
    return pyfuse3_server.serve(text, caller)


def _get_ready(template: Template | None) -> None:
    """Import. The channel's template does it in a process of its own, beside this one."""
    if template is not None:
        import cvfs.mount.channel_server
    else:
        import cvfs.transport  # noqa: I001 (first, as in `cvfs.mount.template`)
        import cvfs.mount.pyfuse3_server

        with contextlib.suppress(ImportError):  # then it says so when it is wanted
            import cvfs.fuse.pyfuse3_engine  # noqa: F401
    gc.freeze()
    gc.enable()


def _drop(template: Template | None) -> None:
    if template is not None:
        os.kill(template.pid, signal.SIGKILL)
        os.waitpid(template.pid, 0)
