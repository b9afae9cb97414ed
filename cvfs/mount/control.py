"""The control socket of a mount: one line of JSON asks, one answers."""

import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import Any

import trio

from cvfs.errors import CvfsError
from cvfs.mount.runtime import Runtime

log = logging.getLogger(__name__)

_DEADLINE_S = 5.0
_MAX_REQUEST_BYTES = 64 << 10

Answer = dict[str, Any]
Answers = Mapping[str, Callable[[Mapping[str, Any]], Answer | Awaitable[Answer]]]
"""Command: what answers it, given all that was asked. Must not fail."""


class Control:
    """The control socket of the mount on `mount_point`, answered, and made anew when somebody has removed it, perhaps
    with its directory: at logout the system removes that of a user whose mounts go on.

    `is_mounted()`: that mount is still what is there. `made(listener)` gets one that was made anew, to keep or close.
    Nothing is answered before there was one to `take`.
    """

    def __init__(
        self,
        runtime: Runtime,
        mount_point: Path,
        is_mounted: Callable[[], bool],
        made: Callable[[socket.socket], None],
    ) -> None:
        self._runtime, self._mount_point = runtime, mount_point
        self._is_mounted, self._made = is_mounted, made
        self._scope = trio.CancelScope()
        self._taken: socket.socket | None = None
        """What is to be answered on as soon as the loop comes round."""
        self._looking = trio.Lock()
        self._has_looked = False
        self._complaint = ""

    def take(self, listener: int) -> None:
        """Answer on `listener`, a descriptor that stays the caller's, from now on, and not on the one before."""
        if self._taken is not None:
            self._taken.close()
        self._taken = socket.socket(fileno=os.dup(listener))
        self._scope.cancel()

    async def serve(self, answers: Answers) -> None:
        """Answer on what was taken last. Until cancelled."""
        while self._taken is not None:
            listener, self._taken = self._taken, None
            listener.setblocking(False)
            with trio.CancelScope() as self._scope:
                await _serve(trio.SocketListener(trio.socket.from_stdlib_socket(listener)), answers)

    async def look(self) -> None:
        """See to it that there is a socket: for whoever is awake anyway, as this takes microseconds if there is.

        The first time it is tried as well: it may be of a worker that was killed while it made it, with nobody behind.
        What stands in the way is logged. Cancelled: there is one or not.
        """
        if self._has_looked and self._is_there():
            return
        async with self._looking:  # of two that are made the first may be heard of last
            await self._look()

    async def _look(self) -> None:
        work = partial(self._runtime.listen_anew, self._mount_point, self._is_mounted)
        try:
            listener = await trio.to_thread.run_sync(work)
        except (CvfsError, OSError) as error:
            if str(error) != self._complaint:
                log.warning("the control socket of %s is gone: %s", self._mount_point, error)
            self._complaint = str(error)
            return
        self._has_looked, self._complaint = True, ""
        if listener is not None:
            log.warning("the control socket of %s was removed, and is made anew", self._mount_point)
            self.take(listener.fileno())
            self._made(listener)

    def _is_there(self) -> bool:
        return os.path.lexists(self._runtime.socket_of(self._mount_point))


async def _serve(listener: trio.SocketListener, answers: Answers) -> None:
    """Answer on `listener` until cancelled, and close it. Whoever asks and says nothing is left after some seconds."""
    await trio.serve_listeners(partial(_serve_one, answers), [listener])


async def _serve_one(answers: Answers, stream: trio.SocketStream) -> None:
    with trio.move_on_after(_DEADLINE_S):
        try:
            answer = _answer(answers, await _receive_line(stream))
            if isawaitable(answer):
                answer = await answer
            await stream.send_all(json.dumps(answer).encode() + b"\n")
        except trio.BrokenResourceError:
            log.debug("whoever asked has gone")


async def _receive_line(stream: trio.SocketStream) -> bytes:
    """Up to the end of the line, of the stream, or of what is allowed."""
    line = b""
    while b"\n" not in line and len(line) < _MAX_REQUEST_BYTES:
        data = await stream.receive_some(_MAX_REQUEST_BYTES)
        if not data:
            break
        line += data
    return line


def _answer(answers: Answers, line: bytes) -> Answer | Awaitable[Answer]:
    try:
        request = json.loads(line)
        answer = answers.get(request.get("command"))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {"error": "unknown command"}
    return answer(request) if answer is not None else {"error": "unknown command"}
