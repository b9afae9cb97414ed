"""Keeping the repositories of a mount at their newest revisions: in one worker, for all of them."""

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import trio

from cvfs.errors import CvfsError
from cvfs.fuse.invalidate import Changes, find_changes
from cvfs.fuse.link import Message
from cvfs.inodes import ROOT_INODE
from cvfs.model import Manifest
from cvfs.mount.control import Answers
from cvfs.mount.followers import PendingSwitch
from cvfs.mount.member import Member, Opened
from cvfs.mount.mounted import ALONE, Mounted
from cvfs.mount.refresher import Invalidate, Refresher
from cvfs.mount.request import MountRequest
from cvfs.mount.shown import Shown
from cvfs.repository import Repository

log = logging.getLogger(__name__)

_AGAIN_S: Final = 5.0
"""Until a switch is tried again that a page is lacking for."""

Announce = Callable[[str, Manifest], Awaitable[PendingSwitch]]
"""Tells the other workers that a repository, by its label, switches. Called before the switch."""


def refresh_answer(request: MountRequest, refreshers: "Refreshers") -> Answers:
    """What answers `cvfs refresh`: nothing, where one repository is pinned."""
    if not request.all and request.revision is not None:
        return {}
    alone = None if request.all else ALONE

    def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
        label = asked.get("repository", alone)
        if label is not None and not isinstance(label, str):
            return {"error": "wanted the name of a repository"}
        return {**refreshers.request(label), "worker_pid": os.getpid()}

    return {"refresh": answer}


class Refreshers:
    """A Refresher for each repository that is open, as soon as it is; those that other workers have opened too.

    `awake()` is called when one of them has looked for a new revision, and when a repository has been opened.
    """

    def __init__(
        self,
        mounted: Mounted,
        shown: Shown,
        invalidate: Invalidate,
        announce: Announce,
        nursery: trio.Nursery,
        awake: Callable[[], Awaitable[None]],
    ) -> None:
        self._mounted, self._shown = mounted, shown
        self._invalidate, self._announce, self._nursery, self._awake = invalidate, announce, nursery, awake
        self._refreshers: dict[str, Refresher] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._replaced: dict[str, tuple[Repository, trio.Event]] = {}
        """What was called so before, until the kernel has been told how the new one differs."""
        self.tell_others: Callable[[Message], None] = lambda message: None
        """Sends a message to the other workers of the mount."""
        self._tries: dict[str, int] = {}
        self._rounds = self._rounds_begun = 0
        self._problem = ""

    async def run(self) -> None:
        """Begin with what is open, here or in another worker; one after the other, for nobody waits for it."""
        self._mounted.on_open, self._mounted.on_anew = self._begin, self._announce_anew
        for member in self._mounted.members():
            if member.opened:
                self._begin(member, member.opened)
        for label in self._shown.names():
            await self._adopt(label)

    def adopt(self, label: str) -> None:
        """Another worker has opened this one."""
        self._nursery.start_soon(self._adopt, label)

    def anew(self, label: str) -> None:
        """Another repository may have taken this name: what the kernel knows of the one before is not so any more."""
        refresher = self._refreshers.pop(label, None)
        if refresher is None:
            self._nursery.start_soon(self._invalidate, _name_of(label))
            return
        self._scopes.pop(label).cancel()
        if label in self._replaced:
            self._replaced[label][1].set()  # by one that was replaced before it was looked at
        done = trio.Event()
        self._replaced[label] = refresher.end(), done
        self._tries[label] = self._tries.get(label, 0) + refresher.count
        self._nursery.start_soon(self._replace, label, done)

    async def _replace(self, label: str, done: trio.Event) -> None:
        """Names below what somebody has open outlive the name of the repository, and would be believed of the new one:
        so that is opened unasked, and compared."""
        await self._invalidate(_name_of(label))
        member = self._mounted.member(label)
        if member is not None and member.opened is None:
            await self._try_to_open(member)
        if member is None or member.opened is None:
            done.set()  # it is compared when it can be opened

    async def _compare(self, label: str, opened: Opened) -> None:
        if label not in self._replaced:
            return
        before, done = self._replaced.pop(label)
        try:
            await self._invalidate(await find_changes(before, opened.filesystem.repository))
        except CvfsError as error:
            log.warning("of what %s was before, names that are in use stay: %s", label, error)
        finally:
            done.set()

    def _announce_anew(self, label: str) -> None:
        self.tell_others({"type": "anew", "label": label})
        self.anew(label)

    def request(self, label: str | None) -> dict[str, Any]:
        """Have the newest revision looked for: of one repository, or (None) of all that are open, and what there is to
        show as well. "refreshes" of the answer has grown, in the status, when that is done; None: there is no such."""
        if label is None:
            self._nursery.start_soon(self._refresh_all)
            self._rounds_begun += 1
            return {"refreshes": self._rounds_begun - 1}
        member = self._mounted.member(label)
        if member is None:
            return {"refreshes": None}
        tries = self._tries.get(label, 0)
        if label in self._refreshers:
            return {"refreshes": tries + self._refreshers[label].request()}
        self._nursery.start_soon(self._try_to_open, member)
        return {"refreshes": tries}

    def count(self, label: str | None = None) -> int:
        """Refreshes that are done."""
        if label is None:
            return self._rounds
        refresher = self._refreshers.get(label)
        return self._tries.get(label, 0) + (refresher.count if refresher else 0)

    def problem(self, label: str | None = None) -> str:
        """What was wrong with the last one."""
        if label is None:
            return self._problem
        refresher = self._refreshers.get(label)
        if refresher is not None:
            return refresher.problem
        member = self._mounted.member(label)
        return str(member.failure) if member and member.failure else ""

    def is_switching(self, label: str) -> bool:
        """Whether the kernel has yet to be told of a switch."""
        return self._shown.previous(label) is not None

    def _begin(self, member: Member, opened: Opened) -> None:
        label = member.label
        self._refreshers[label] = Refresher(
            opened.client,
            opened.filesystem,
            opened.site.settings,
            self._invalidate,
            partial(self._tell, label),
            partial(self._shown.settle, label),
            self._awake,
        )
        self._scopes[label] = trio.CancelScope()
        self._nursery.start_soon(self._keep_new, member, opened, self._refreshers[label], self._scopes[label])

    async def _keep_new(self, member: Member, opened: Opened, refresher: Refresher, scope: trio.CancelScope) -> None:
        label = member.label
        with scope:
            await self._awake()
            await self._compare(label, opened)
            await self._finish(label, refresher)
            await refresher.run()

    async def _finish(self, label: str, refresher: Refresher) -> None:
        while (previous := self._shown.previous(label)) is not None:
            try:
                await refresher.finish(previous)
                break
            except CvfsError as error:  # a page that tells what changed cannot be had now
                log.warning("the kernel is still to be told of what changed in %s: %s", label or "the mount", error)
                await trio.sleep(_AGAIN_S)

    async def _tell(self, label: str, new: Manifest, old: Manifest) -> PendingSwitch | None:
        """The kernel may still believe something of an older one than `old`, if not all have followed that switch."""
        if not self._shown.switch(label, new, self._shown.previous(label) or old):
            return None
        return await self._announce(label, new)

    async def _adopt(self, label: str) -> None:
        if self._mounted.member(label) is None:
            await self._mounted.reload()
        member = self._mounted.member(label)
        if member is not None and member.opened is None:
            await self._try_to_open(member)

    async def _try_to_open(self, member: Member) -> None:
        try:
            await member.open()
        except CvfsError:
            return  # it is logged, and whoever uses it tries again
        finally:
            self._tries[member.label] = self._tries.get(member.label, 0) + 1

    async def _refresh_all(self) -> None:
        await self._mounted.reload()
        self.tell_others({"type": "names"})
        problems = await self._mounted.problems()
        shown = {member.label for member in self._mounted.members()}
        refreshers = {label: one for label, one in self._refreshers.items() if label in shown}
        async with trio.open_nursery() as nursery:
            for _, done in self._replaced.values():
                nursery.start_soon(done.wait)
            if ALONE not in refreshers:
                names = [(ROOT_INODE, label.encode()) for label in self._mounted.changed()]
                nursery.start_soon(self._invalidate, Changes(names, {ROOT_INODE}))
            for refresher in refreshers.values():
                nursery.start_soon(refresher.now)
        problems += [f"{label}: {one.problem}" for label, one in refreshers.items() if one.problem]
        self._problem = "; ".join(problems)
        self._rounds += 1


def _name_of(label: str) -> Changes:
    """The kernel is to look a repository of a mount of all up again."""
    return Changes([(ROOT_INODE, label.encode())], {ROOT_INODE})
