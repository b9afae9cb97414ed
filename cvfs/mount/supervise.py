"""The process that a supervised mount stands on: `python -m cvfs.mount.supervise REQUEST READY`.

REQUEST is a MountRequest in JSON, which is only handed on to the workers; READY the number of a descriptor on which
is said that the mount can be used, or why it cannot; -1 where nobody listens.
"""

import contextlib
import json
import logging
import os
import sys
from typing import Any, Final

from cvfs.fuse.link import Message
from cvfs.fuse.supervisor import Supervisor
from cvfs.mount.logs import setup_logging
from cvfs.mount.notify import notify

_PING_S: Final = float(os.environ.get("CVFS_PING_S", "5"))
_HANG_S: Final = float(os.environ.get("CVFS_HANG_S", "10"))
"""After which a worker that does not answer is replaced: longer than any page takes to decode, on a busy host too."""


def main() -> None:
    text, ready = sys.argv[1], int(sys.argv[2])
    setup_logging()
    request = json.loads(text)

    def say(message: dict[str, Any]) -> None:
        if ready < 0:
            if "error" in message:
                sys.stderr.write(f"cvfs: error: {message['error']}\n")
            return
        with contextlib.suppress(OSError):
            os.write(ready, json.dumps(message).encode() + b"\n")
            os.close(ready)

    def started(message: Message) -> None:
        if request["keep_group"]:
            os.setsid()
        say({"warnings": message["warnings"]})
        notify("READY=1", f"STATUS=serving {message['what']}")

    supervisor = Supervisor(
        [*python(), "-m", "cvfs.mount.template", text],
        request["settings"]["workers"],
        started=started,
        failed=lambda error: say({"error": error}),
        unmount=[*python(), "-m", "cvfs", "umount", "--lazy", request["directory"]],
        ping_s=_PING_S,
        hang_s=_HANG_S,
    )
    if ready >= 0:
        os.set_inheritable(ready, False)
    status = supervisor.run()
    notify("STOPPING=1")
    logging.shutdown()
    os._exit(status)


def python() -> list[str]:
    """The interpreter, as strict about bytes as this one."""
    return [sys.executable, *(["-" + "b" * sys.flags.bytes_warning] if sys.flags.bytes_warning else [])]


if __name__ == "__main__":
    main()
