"""A worker's connection to its supervisor."""

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

import trio

from cvfs.errors import MountError
from cvfs.fuse import link
from cvfs.fuse.held import remove_files
from cvfs.fuse.link import FUSE, Message

_LAST_BREATH_S: Final = 1.0


class Orders:
    """A worker's connection to its supervisor, and what it was told first.

    `descriptors` are those that the supervisor holds, by name: none in the first worker of a mount. `state` is what
    earlier workers have left. `slot` of `count` is which channel this worker serves.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        message = link.receive(connection)
        if message is None:
            raise MountError("the supervisor is gone")
        self.descriptors: dict[str, int] = message["descriptors"]
        self.state: Message = message["state"]
        self.slot: int = message["slot"]
        self.count: int = message["count"]
        self.supervisor: int = message["supervisor"]
        self._process = os.pidfd_open(self.supervisor)
        self.generation = self.restarts = 0
        self.problem = ""
        self.handlers: dict[str, Callable[[Message], None]] = {}
        connection.setblocking(False)

    @property
    def is_first(self) -> bool:
        """Whether nothing is mounted yet."""
        return not any(name.startswith(FUSE) for name in self.descriptors)

    def say(self, kind: str, **fields: object) -> None:
        link.send(self._connection, {"type": kind, **fields})

    def hold(self, descriptors: dict[str, int], **state: object) -> None:
        """Have the supervisor keep `descriptors`, and `state`, for the workers after this one."""
        self.descriptors |= descriptors
        self.state |= state
        link.send(self._connection, {"type": "hold"}, descriptors)
        self.remember(**state)

    def remember(self, **state: object) -> None:
        self.state |= state
        self.say("remember", state=state)

    def unlink(self) -> None:
        """Remove what is to go with the mount, where the supervisor cannot do it any more."""
        remove_files(self.state.get("unlink", {}))

    def learn(self, news: Message) -> None:
        """What the supervisor knows of the mount, when this worker begins to serve and whenever it changes.

        It may have older code than this worker, and less to say.
        """
        self.generation, self.restarts = news["generation"], news["restarts"]
        self.problem = news.get("problem", "")

    async def receive(self) -> Message | None:
        """The next order; None if the supervisor does not want to hear of this worker any more, or is gone."""
        while True:
            await trio.lowlevel.wait_readable(self._connection)
            with contextlib.suppress(BlockingIOError):
                return link.receive(self._connection)

    async def is_orphaned(self) -> bool:
        """Whether the supervisor has ended; its connection ends a moment before the process does."""
        with trio.move_on_after(_LAST_BREATH_S) as scope:
            await trio.lowlevel.wait_readable(self._process)
        return not scope.cancelled_caught
