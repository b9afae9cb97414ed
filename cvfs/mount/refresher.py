"""Revision switches: a mount goes on with a newer revision, and nobody has to remount."""

import logging
import random
from collections.abc import Awaitable, Callable

import trio

from cvfs.config import Settings
from cvfs.filesystem import FileSystem
from cvfs.fuse.invalidate import Changes, find_changes
from cvfs.model import Manifest
from cvfs.mount.client import Client, bring_root
from cvfs.mount.followers import PendingSwitch
from cvfs.mount.freshness import ExpiryWarning
from cvfs.repository import Repository

log = logging.getLogger(__name__)

Invalidate = Callable[[Changes], Awaitable[None]]
"""Tells the kernel. Called after the switch."""

_RETRY_S = (5.0, 60.0)

AGAIN_S = 1.0
"""After which the kernel is told a second time: an answer of the old revision that was on its way to it during the
switch can be taken in after the first time."""


class Refresher:
    """Asks for the newest revision now and then, and when told to, and switches `filesystem` to it.

    `announce(new, old)` is called before a switch, so that it can be finished by another process if this one dies; it
    returns None if another process has announced a newer revision. `settled()` is called when the kernel has been told,
    and no process goes by the old revision any more; `awake()` whenever it has looked, for what else should be seen to
    now and then.
    """

    def __init__(
        self,
        client: Client,
        filesystem: FileSystem,
        settings: Settings,
        invalidate: Invalidate,
        announce: Callable[[Manifest, Manifest], Awaitable[PendingSwitch | None]],
        settled: Callable[[], None],
        awake: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        self._client, self._filesystem, self._settings = client, filesystem, settings
        self._invalidate, self._announce, self._settled, self._awake = invalidate, announce, settled, awake
        self._expiry_warning = ExpiryWarning(client.heads)
        self._wanted = trio.Event()
        self._done = trio.Event()
        self.count = 0
        self._is_busy = self._is_ended = False
        self.problem = ""
        self._untold = Changes()
        """What the kernel may believe something old of."""
        self._following: PendingSwitch | None = None
        """Who has yet to follow the last switch; None: nobody, and the kernel has been told since."""
        client.mirrors.network.listeners.append(self._someone_answers_again)

    def _someone_answers_again(self) -> None:
        if self._client.heads.problem:
            self._wanted.set()

    def request(self) -> int:
        """Have the newest revision looked for. When that is done, `count` is greater than what is returned: what is
        under way now may have asked before there was news."""
        self._wanted.set()
        return self.count + self._is_busy

    async def now(self) -> None:
        """Return when the newest revision has been looked for."""
        before = self.request()
        while self.count <= before and not self._is_ended:
            await self._done.wait()

    def end(self) -> Repository:
        """Nobody runs it any more: whoever waits is not to wait forever. What it has kept new."""
        self._client.mirrors.network.listeners.remove(self._someone_answers_again)
        self.count += 1 + self._is_busy
        self._is_ended = True
        self._done.set()
        return self._filesystem.repository

    async def run(self) -> None:
        """Refresh whenever that is requested, and at intervals; sooner where the last answer was not good, and at once
        where it is not known how long what is shown is signed for: what an earlier worker accepted was not stored."""
        retry_s, longest_s = _RETRY_S
        if self._client.heads.head is None:
            self._wanted.set()
        while True:
            self._expiry_warning.look()
            heads, interval_s = self._client.heads, self._settings.refresh_s
            retry_s = min(retry_s * 2, longest_s) if heads.problem else _RETRY_S[0]
            wait_s = min(retry_s, interval_s) if heads.problem else interval_s
            with trio.move_on_after(wait_s * (0.75 + random.random() / 2)):
                await self._wanted.wait()
            self._wanted = trio.Event()
            await self._try()
            await self._awake()

    async def _try(self) -> None:
        """Whatever goes wrong is told, and tried again: a worker that ends by it would serve nobody, and its successor
        would meet the same."""
        was_troubled, self._is_busy = bool(self._client.heads.problem), True
        try:
            await self._follow_up()
            await self.refresh()
        except Exception as error:  # noqa: BLE001 - it is logged with its trace unless it is one of ours
            self._client.heads.complain(error)
            self.problem = self._client.heads.problem
        if was_troubled and not self.problem:
            log.info("%s answers again", self._client.url)
        self.count, self._is_busy = self.count + 1, False
        self._done.set()
        self._done = trio.Event()

    async def refresh(self) -> None:
        """Go on with the newest revision, if no other one is pinned, once its root has been read.

        Raises CvfsError: it cannot be had; nothing has changed then.
        """
        settings = self._settings
        head = await self._client.heads.current(settings.start_deadline_s, settings.known_deadline_s)
        self.problem = head.problem
        if head.problem:
            return
        old = self._filesystem.repository
        new = old.at(head.manifest)
        await bring_root(new, self._client.url, settings.start_deadline_s)
        await self._client.heads.accept(head)
        if settings.which is None and head.manifest != old.manifest:
            await self.switch(new)

    async def switch(self, new: Repository) -> None:
        """Go on with `new`, and have the kernel forget what is not so any more."""
        old = self._filesystem.repository
        changes = await find_changes(old, new)
        following = await self._announce(new.manifest, old.manifest)
        if following is None or self._filesystem.repository.manifest.revision > new.manifest.revision:
            return
        self._filesystem.switch(new)
        await self._tell(changes, following)
        log.info("switched to revision %d: %d names changed", new.manifest.revision, len(changes.names))

    async def finish(self, previous: Manifest) -> None:
        """Have everybody know of a switch from `previous` that another process had begun, but may not have told of."""
        now = self._filesystem.repository
        changes = await find_changes(now.at(previous), now)
        following = await self._announce(now.manifest, previous)
        if following is not None:
            await self._tell(changes, following)

    async def _tell(self, changes: Changes, following: PendingSwitch) -> None:
        self._untold.names += changes.names
        self._untold.directories |= changes.directories
        self._following, following.listener = following, self._wanted_now
        await self._tell_kernel()

    async def _tell_kernel(self) -> None:
        """It is settled only where all had followed before the kernel was told: a process that is held up answers what
        it has already read by the old revision when it goes on, and the kernel believes that."""
        have_followed = self._following is None or self._following.complete.is_set()
        await self._invalidate(self._untold)
        await trio.sleep(AGAIN_S)
        await self._invalidate(self._untold)
        if have_followed:
            self._untold, self._following = Changes(), None
            self._settled()

    async def _follow_up(self) -> None:
        """See to those who had not followed in time."""
        if self._following is None:
            return
        if self._following.complete.is_set():
            await self._tell_kernel()
        else:
            self._following.repeat()

    def _wanted_now(self) -> None:
        self._wanted.set()
