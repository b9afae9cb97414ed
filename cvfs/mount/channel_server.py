"""The server of a supervised mount: a supervisor, and what it does with the world around it."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Final

import cvfs
from cvfs.fuse import link
from cvfs.fuse.held import Held
from cvfs.fuse.link import Message
from cvfs.fuse.processes import Template
from cvfs.fuse.supervision import Vigil
from cvfs.fuse.supervisor import Supervisor, Surroundings
from cvfs.mount.daemon import Caller
from cvfs.mount.logs import setup_logging
from cvfs.mount.notify import notify, watchdog_s

log = logging.getLogger(__name__)

_PING_S: Final = float(os.environ.get("CVFS_PING_S", "5"))
_HANG_S: Final = float(os.environ.get("CVFS_HANG_S", "10"))
"""After which a worker that does not answer is replaced: longer than any page takes to decode, on a busy host too.

The variables, and CVFS_NO_RESEND below, are no settings but for tests, which cannot wait for so long, and have a newer
kernel."""


def serve(text: str, caller: Caller, template: Template) -> int:
    """Supervise the mount that `text` asks for, a MountRequest in JSON, to its end; the exit status.

    The request is only handed on to the workers.
    """
    request = json.loads(text)
    setup_logging(request["settings"]["log_format"])
    unmount = [*_python(), "-m", "cvfs.fuse.removal"]

    def started(message: Message) -> None:
        caller.report(message["warnings"])
        notify("READY=1", f"STATUS=serving {message['what']}")

    def failed(error: str) -> None:
        if caller.log is not None:  # else what is logged comes where the caller says it
            log.error("cannot mount: %s", error)
        caller.fail(error)

    supervisor = Supervisor(
        Surroundings(
            new_template=lambda: _begin(
                Template.spawn([*_python(), "-m", "cvfs.mount.template"], _environment()), text
            ),
            started=started,
            failed=failed,
            alive=lambda: notify("WATCHDOG=1"),
            unmount=lambda point, device, is_connected: _run(
                [*unmount, point, device, *([] if is_connected else ["if-dead"])]
            ),
        ),
        _begin(template, text, caller.log),
        request["settings"]["workers"],
        Held(may_resend="CVFS_NO_RESEND" not in os.environ),
        Vigil(_PING_S, _HANG_S, watchdog_s()),
    )
    status = supervisor.run()
    notify("STOPPING=1")
    logging.shutdown()
    return status


def _begin(template: Template, text: str, log: int | None = None) -> Template:
    """Tell a template what its workers are for; with `log`, where to log to instead of where its parent does."""
    link.send(template.socket, {"type": "begin", "request": text}, {} if log is None else {"log": log})
    return template


def _python() -> list[str]:
    """The interpreter, as strict about bytes as this one, and never with code from the working directory."""
    return [sys.executable, "-P", *(["-" + "b" * sys.flags.bytes_warning] if sys.flags.bytes_warning else [])]


def _environment() -> dict[str, str]:
    """For a new interpreter, which need not find the code by where the first one was started."""
    root = str(Path(cvfs.__file__).parents[1])
    if sys.path[0] != root:
        return {**os.environ}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def _run(command: list[str]) -> None:
    try:
        os.waitpid(os.posix_spawn(command[0], command, _environment()), 0)
    except OSError as error:
        log.error("cannot run %s: %s", command[0], error.strerror)  # noqa: TRY400
