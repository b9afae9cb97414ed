"""What a worker of a supervised mount does, from its start to its end."""

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import trio

from cvfs.filesystem import View
from cvfs.fuse import kernel
from cvfs.fuse.channel import Channel, Statistics
from cvfs.fuse.handlers import Handlers
from cvfs.fuse.held import is_connected
from cvfs.fuse.invalidate import Changes, notices_of, write_notices
from cvfs.fuse.link import FUSE
from cvfs.fuse.mountinfo import find_mount
from cvfs.fuse.options import MountOptions
from cvfs.fuse.orders import Orders
from cvfs.fuse.protocol.negotiation import FLEETING_FLAGS, Session, Wishes
from cvfs.fuse.removal import take_away
from cvfs.fuse.supervision import SHORT_LIFE_S

MANY_NAMES: Final = 50_000
"""Changed names beyond which the kernel is to forget all: to name so many takes a tenth of a second and more."""

_READ_AHEAD_KIB: Final = 1024
"""With 2 or 4 MiB large files come out of the local cache no faster, and a program that maps libraries fetches a tenth
more when it starts for the first time (55 instead of 50 MB for scipy)."""

_EXACT_S: Final = 2.0
_PATIENCE_S: Final = 2.0
_LOOK_S: Final = 0.02

log = logging.getLogger(__name__)


class Worker:
    """Serves `filesystem` on one channel of a supervised mount."""

    def __init__(self, filesystem: View, directory: Path, options: MountOptions, orders: Orders) -> None:
        self._filesystem, self._directory, self._options = filesystem, directory, options
        self._orders = orders
        self._channel: Channel | None = None

    @property
    def statistics(self) -> Statistics:
        return self._channel.statistics if self._channel else Statistics()

    async def invalidate(self, changes: Changes) -> None:
        """Tell the kernel what a switch of the revision has changed.

        Name by name, because INC_EPOCH has a price: the kernel drops every file that is looked up after it and not in
        use, with its cached pages (seen on Linux 6.18). It is for very many names, and where the kernel waits for a
        lookup in one of the directories that hangs.
        """
        wish = self._options.invalidation
        has_epoch = self._orders.state["inc_epoch"] and wish != "exact"
        if not has_epoch or (wish == "auto" and len(changes.names) <= MANY_NAMES):
            with trio.move_on_after(_EXACT_S if has_epoch else math.inf) as scope:
                await self._tell(notices_of(changes, epoch=False))
            if not scope.cancelled_caught:
                return
        await self._tell(notices_of(changes, epoch=True))

    async def _tell(self, messages: Iterator[bytes]) -> None:
        """In a thread: the kernel may wait for requests that are under way, and those are answered in the loop."""
        descriptor = self._orders.descriptors[f"{FUSE}{self._orders.slot}"]
        await trio.to_thread.run_sync(write_notices, descriptor, messages, abandon_on_cancel=True)

    async def serve(self, started: Callable[[], None]) -> None:
        """Mount, unless that was done; serve until the mount is gone or another worker takes over.

        `started()` is called when the kernel was answered for the first time in the life of the mount. Raises
        MountError if the kernel, or fusermount3, refuses.
        """
        orders = self._orders
        if orders.is_first:
            self._mount()

        def initialized(session: Session) -> None:
            orders.remember(resend=session.has_resend, inc_epoch=session.has_inc_epoch)
            _raise_read_ahead(self._directory)
            started()

        self._channel = Channel(
            orders.descriptors[f"{FUSE}{orders.slot}"],
            Handlers(self._filesystem),
            self._options.request_deadline_s,
            wishes=Wishes(FLEETING_FLAGS) if self._options.is_fleeting else Wishes(),
            initialized=initialized,
            foreign_interrupt=self._pass_interrupt_on,
        )
        orders.say("ready")
        if await self._wait_for_go():
            await self._serve(self._channel)

    def _mount(self) -> None:
        """Mount, make a channel for each worker, and have the supervisor hold them all."""
        descriptor = kernel.mount(self._directory, self._options)
        descriptors = {f"{FUSE}0": descriptor}
        try:
            for slot in range(1, self._orders.count):
                descriptors[f"{FUSE}{slot}"] = kernel.clone_device(descriptor)
        finally:
            mounted = find_mount(self._directory)
            about = [str(mounted.directory), mounted.device] if mounted else []
            self._orders.hold(descriptors, mounted=about)

    async def _wait_for_go(self) -> bool:
        while (order := await self._orders.receive()) is not None:
            if order["type"] == "go":
                self._orders.learn(order)
                return True
            # Also one that is starting has to follow a switch.
            handler = self._orders.handlers.get(order["type"])
            if handler is not None:
                handler(order)
        return False

    async def _serve(self, channel: Channel) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey, channel, nursery)
            nursery.start_soon(self._tell_of_answers, channel)
            if await channel.serve():
                # A connection also ends when it is aborted, which leaves a mount that answers ENOTCONN.
                await self._unmount()
                self._orders.remember(unmounted=True)
                self._orders.say("unmounted")
            nursery.cancel_scope.cancel()

    async def _tell_of_answers(self, channel: Channel) -> None:
        """Have the supervisor know that this worker is of use, before its life is long enough to show it."""
        for _ in range(round(SHORT_LIFE_S / _LOOK_S)):
            await trio.sleep(_LOOK_S)
            if sum(channel.statistics.by_opcode.values()) > channel.under_way:
                self._orders.say("answered")
                return

    async def _obey(self, channel: Channel, nursery: trio.Nursery) -> None:
        """Do what the supervisor says; if it is gone, take the mount away and serve those who still use it."""
        while (order := await self._orders.receive()) is not None:
            kind = order["type"]
            if kind == "ping":
                asked = sum(channel.statistics.by_opcode.values())
                self._orders.say("pong", under_way=channel.under_way, asked=asked)
            elif kind == "finish":
                channel.stop()
            elif kind == "unmount":
                nursery.start_soon(self._unmount)
            elif kind == "interrupt":
                channel.interrupt(order["unique"])
            elif kind == "news":
                self._orders.learn(order)
            elif kind in self._orders.handlers:
                self._orders.handlers[kind](order)
        if not await self._orders.is_orphaned():
            nursery.cancel_scope.cancel()
            return
        log.error("the supervisor is gone: unmounting %s", self._directory)
        self._orders.unlink()
        await self._unmount()

    async def _unmount(self) -> None:
        """Lazily: whoever uses it now may go on. A mount that may be another's is asked whether it is dead; one that
        hangs is not."""
        if self._orders.state.get("mounted"):
            if_dead = not is_connected(self._orders.descriptors[f"{FUSE}{self._orders.slot}"])
            work = partial(take_away, *self._orders.state["mounted"], if_dead=if_dead)
            with trio.move_on_after(_PATIENCE_S if if_dead else math.inf):
                await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    def _pass_interrupt_on(self, unique: int) -> None:
        """Also where one worker is enough: after a reload there may be a second, which ends what it has begun."""
        self._orders.say("relay", message={"type": "interrupt", "unique": unique})


def _raise_read_ahead(directory: Path) -> None:
    """Where it is permitted: 1 MiB a READ instead of 128 KiB. Only after INIT was answered."""
    if not kernel.set_read_ahead(directory, _READ_AHEAD_KIB):
        log.info("the read-ahead of %s cannot be raised: large files are read in smaller requests", directory)
