"""Who has followed a switch of the revision: the worker that begins it has to know when no other can go by the old one.

Until then any of them may answer the kernel with what was so before, and the kernel would believe it for a year.
"""

import logging
import os
from collections.abc import Callable, Iterable
from typing import Final

import trio

from cvfs.format.manifest import encode_manifest
from cvfs.fuse.link import Message
from cvfs.fuse.orders import Orders
from cvfs.model import Manifest

log = logging.getLogger(__name__)

FOLLOW_S: Final = 2.0
"""For the others to follow before the switch goes on without them: each does so in its loop, at once."""


class PendingSwitch:
    """One switch, and the processes that have yet to follow it."""

    def __init__(self, repeat: Callable[[], None] = lambda: None) -> None:
        self.repeat = repeat
        """Says it again, to those who may not have got it: what does not read for long cannot be told."""
        self.listener: Callable[[], None] = lambda: None
        """Called when the last one has followed."""
        self.complete = trio.Event()
        self._expected: set[int] | None = None
        self._done: set[int] = set()

    def expect(self, pids: Iterable[int]) -> set[int]:
        """All those that answer the kernel, besides the one that has begun. Before, it is not known who they are.

        Returns those that were not expected yet.
        """
        before, self._expected = self._expected or set(), set(pids)
        self._look()
        return self._expected - before

    def confirm(self, pid: int) -> None:
        """It goes by the new revision, or has ended."""
        self._done.add(pid)
        self._look()

    def drop(self) -> None:
        """Nobody wants to know any more: there is a newer one."""
        self.listener = lambda: None
        self.complete.set()

    def _look(self) -> None:
        if self._expected is not None and self._expected <= self._done and not self.complete.is_set():
            self.complete.set()
            self.listener()


def nobody() -> PendingSwitch:
    """A switch that no other process has to follow: the mount has one."""
    following = PendingSwitch()
    following.expect(())
    return following


class Followers:
    """The other workers of a mount, which the supervisor at the other end of `orders` knows."""

    def __init__(self, orders: Orders, nursery: trio.Nursery) -> None:
        self._orders, self._nursery = orders, nursery
        self._latest: dict[str, tuple[int, PendingSwitch]] = {}
        self._receipts: dict[int, PendingSwitch] = {}
        self._told = 0

    async def announce(self, label: str, manifest: Manifest) -> PendingSwitch:
        """Have all others switch a repository to `manifest`; return when they have, or in a moment if some do not.

        Also where one worker is enough: during a reload its successor is there already, or its predecessor still.
        """
        switch = {"type": "switch", "label": label, "manifest": encode_manifest(manifest).decode()}
        following = PendingSwitch(lambda: self._tell(switch, following))
        if label in self._latest:
            self._latest[label][1].drop()
        self._latest[label] = manifest.revision, following
        following.repeat()
        with trio.move_on_after(FOLLOW_S):
            await following.complete.wait()
        if not following.complete.is_set():
            log.warning("a worker does not follow to revision %d: the kernel is told again later", manifest.revision)
        return following

    def receive_receipt(self, message: Message) -> None:
        """The supervisor says who was told."""
        following = self._receipts.pop(message["receipt"], None)
        if following is not None:
            self._nursery.start_soon(_watch, following, following.expect(message["to"]))

    def receive_confirmation(self, message: Message) -> None:
        """Another worker has switched: perhaps to what it was told earlier, or by another."""
        revision, following = self._latest.get(message["label"], (-1, None))
        if following is not None and message["revision"] == revision:
            following.confirm(message["pid"])

    def _tell(self, switch: Message, following: PendingSwitch) -> None:
        self._told += 1
        self._receipts[self._told] = following
        self._orders.say("relay", message=switch, receipt=self._told)


async def _watch(following: PendingSwitch, pids: Iterable[int]) -> None:
    """Do not wait for workers that have ended."""
    async with trio.open_nursery() as nursery:
        for pid in pids:
            nursery.start_soon(_wait_for_end, following, pid)
        await following.complete.wait()
        nursery.cancel_scope.cancel()


async def _wait_for_end(following: PendingSwitch, pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        following.confirm(pid)
        return
    try:
        await trio.lowlevel.wait_readable(process)
        following.confirm(pid)
    finally:
        os.close(process)
