"""Revision switches: a mount goes on with a newer revision, and nobody has to remount."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from cvfs.errors import CvfsError
from cvfs.filesystem import FileSystem
from cvfs.fuse.invalidate import Changes, find_changes
from cvfs.model import Manifest
from cvfs.mount.client import Client
from cvfs.repository import Repository

log = logging.getLogger(__name__)

Invalidate = Callable[[Changes], Awaitable[None]]
"""Tells the kernel. Called after the switch."""

AGAIN_S = 1.0
"""After which the kernel is told a second time: an answer of the old revision that was on its way to it during the
switch can be taken in after the first time."""


class Refresher:
    """Asks for the newest revision when told to, and switches `filesystem` to it.

    `announce(new, old)` is called before a switch, so that it can be finished by another process if this one dies;
    `settled()` when the kernel has been told.
    """

    def __init__(
        self,
        client: Client,
        filesystem: FileSystem,
        deadline_s: float,
        invalidate: Invalidate,
        announce: Callable[[Manifest, Manifest], Awaitable[None]],
        settled: Callable[[], None],
    ) -> None:
        self._client, self._filesystem, self._deadline_s = client, filesystem, deadline_s
        self._invalidate, self._announce, self._settled = invalidate, announce, settled
        self._wanted = trio.Event()
        self.count = 0
        self.problem = ""

    def request(self) -> dict[str, Any]:
        """Have the newest revision looked for. `count` of the answer has grown when that is done."""
        self._wanted.set()
        return {"refreshes": self.count}

    async def run(self) -> None:
        """Refresh whenever that is requested."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                await self.refresh()
                self.problem = ""
            except CvfsError as error:
                self.problem = str(error)
                log.warning("cannot refresh: %s", error)
            self.count += 1

    async def refresh(self) -> None:
        """Go on with the newest revision. Raises CvfsError: it cannot be had; nothing has changed then."""
        head = await self._client.heads.current(self._deadline_s)
        if head.problem:
            self.problem = head.problem
        old = self._filesystem.repository
        if head.manifest.revision > old.manifest.revision:
            await self.switch(old.at(head.manifest))

    async def switch(self, new: Repository) -> None:
        """Go on with `new`, and have the kernel forget what is not so any more."""
        old = self._filesystem.repository
        changes = await find_changes(old, new)
        await self._announce(new.manifest, old.manifest)
        self._filesystem.switch(new)
        await self._tell(changes)
        log.info("switched to revision %d: %d names changed", new.manifest.revision, len(changes.names))

    async def finish(self, previous: Manifest) -> None:
        """Tell the kernel of a switch from `previous` that another process had begun."""
        now = self._filesystem.repository
        await self._tell(await find_changes(now.at(previous), now))

    async def _tell(self, changes: Changes) -> None:
        await self._invalidate(changes)
        await trio.sleep(AGAIN_S)
        await self._invalidate(changes)
        self._settled()
