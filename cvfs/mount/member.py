"""One repository of a mount: opened when somebody first needs it, and tried again when that has failed."""

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import msgspec
import trio

from cvfs.errors import CvfsError
from cvfs.filesystem import FileSystem
from cvfs.flights import Flights
from cvfs.missing import Missing
from cvfs.mount.client import Client
from cvfs.mount.sites import Site

log = logging.getLogger(__name__)

GLANCE_S: Final = 0.5
"""For how long somebody who asks for what could not be opened lately is kept waiting while it is tried again."""

_RETRY_S: Final = (1.0, 15.0)
"""Between two tries, if somebody asks. Short: servers that do not answer are spared by `cvfs.mirrors`."""


class Opened(msgspec.Struct, frozen=True):
    """A repository in use, and what the engine shows of it."""

    site: Site
    client: Client
    filesystem: FileSystem


class NotOpen(Missing):
    """A repository has to be opened before the question can be answered."""

    def __init__(self, member: "Member") -> None:
        super().__init__(member.label)
        self._member = member

    async def bring(self) -> None:
        with suppress(CvfsError):  # the question, asked again, finds the failure
            await self._member.open()


class Member:
    """The repository that a mount calls `label`; `root_inode` is the number of its root there.

    `work` opens it. `is_known()`: some worker of this mount has opened it, so users have seen what is inside.
    """

    def __init__(
        self,
        label: str,
        root_inode: int,
        flights: Flights,
        work: Callable[["Member"], Awaitable[Opened]],
        is_known: Callable[[], bool],
    ) -> None:
        self.label, self.root_inode = label, root_inode
        self._flights, self._work, self._is_known = flights, work, is_known
        self.opened: Opened | None = None
        self.closed = 0
        """How often: what was being opened meanwhile is not it any more."""
        self.failure: CvfsError | None = None
        """Why it could not be opened the last time."""
        self._told: CvfsError | None = None
        """The same, if those who ask are told of it instead of being kept waiting."""
        self._retry_at, self._failures = 0.0, 0

    @property
    def name(self) -> bytes:
        """As a directory lists it."""
        return self.label.encode()

    def filesystem_nowait(self) -> FileSystem:
        """Raises NotOpen: it has to be opened first; CvfsError: it cannot be, as was found out a moment ago."""
        if self.opened is not None:
            return self.opened.filesystem
        if self._told is not None and time.monotonic() < self._retry_at:
            raise self._told.with_traceback(None)
        raise NotOpen(self)

    def shown_nowait(self) -> FileSystem | None:
        """For those who only look at it from outside: None if it is not open, and need not be for them."""
        if self.opened is not None:
            return self.opened.filesystem
        if self.failure is None and self._is_known():
            raise NotOpen(self)  # by another worker: what was seen of it is seen again
        return None

    async def open(self) -> Opened:
        """Open it, unless it is open. However many ask, it is tried once; after a failure nobody waits long.

        Raises CvfsError. Always a checkpoint unless it is open; cancelled: it is opened all the same.
        """
        if self.opened is not None:
            return self.opened
        failure = self._told
        self._put_off()
        with trio.move_on_after(GLANCE_S if failure else float("inf")):
            return await self._flights.join(self.label, self._open)
        assert failure is not None
        raise failure.with_traceback(None)

    async def _open(self) -> Opened:
        try:
            opened = await self._work(self)
        except CvfsError as error:
            self._fail(error)
            raise
        if self.failure is not None:
            log.info("%s can be opened again", self.label or "the repository")
        self.opened, self.failure, self._told, self._failures = opened, None, None, 0
        return opened

    def forgive(self) -> None:
        """Have it tried for the next one who asks, and waited for, as if it had never failed."""
        self._told, self._retry_at, self._failures = None, 0.0, 0

    def close(self) -> None:
        """Have it opened anew for the next one who asks. Whoever still reads what was open goes on."""
        if self.opened is not None:
            self.opened.client.close()
        self.opened = self.failure = None
        self.closed += 1
        self.forgive()

    def _fail(self, error: CvfsError) -> None:
        if str(error) != str(self.failure):
            log.warning("cannot open %s: %s", self.label or "the repository", error)
        self.failure = self._told = error
        self._failures += 1
        self._put_off()

    def _put_off(self) -> None:
        """Those who ask from now on are told of the last failure, also while it is tried again."""
        first_s, longest_s = _RETRY_S
        self._retry_at = time.monotonic() + min(first_s * 2 ** min(self._failures, 10), longest_s)
