"""The workers' side of supervision: the template that forks them, and what one does from its start to its end."""

import contextlib
import gc
import logging
import math
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

import trio

from cvfs.errors import MountError
from cvfs.filesystem import View
from cvfs.fuse import kernel, link
from cvfs.fuse.channel import Channel, Statistics
from cvfs.fuse.channel_engine import kernel_options, raise_read_ahead
from cvfs.fuse.handlers import Handlers
from cvfs.fuse.invalidate import Changes, notices_of, write_notices
from cvfs.fuse.link import Message
from cvfs.fuse.mountinfo import find_mount
from cvfs.fuse.options import MountOptions
from cvfs.fuse.protocol.negotiation import Session
from cvfs.fuse.supervisor import FUSE

MANY_NAMES: Final = 50_000
"""Changed names beyond which the kernel is to forget all: to name so many takes a tenth of a second and more."""

_EXACT_S: Final = 2.0
_LAST_BREATH_S: Final = 1.0

log = logging.getLogger(__name__)


def run_template(number: int, work: Callable[[socket.socket], None]) -> None:
    """Fork a worker whenever the supervisor at the other end of socket `number` asks for one, until it is gone.

    `work` is what a worker does with its own connection to the supervisor. Call it before there is any thread.
    """
    connection = socket.socket(fileno=number)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the supervisor gets them too, and it decides
        signal.signal(ignored, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    while True:
        for ready in select.select([number, reader], [], [])[0]:
            if ready == reader:
                os.read(reader, 64)
                _report_ends(connection)
                continue
            message = link.receive(connection)
            if message is None:
                return
            _fork(connection, message["descriptors"]["link"], work)


def _fork(connection: socket.socket, number: int, work: Callable[[socket.socket], None]) -> None:
    pid = os.fork()
    if pid == 0:
        connection.close()
        _be_worker(number, work)
    os.close(number)
    link.send(connection, {"type": "forked", "pid": pid})


def _be_worker(number: int, work: Callable[[socket.socket], None]) -> NoReturn:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        work(socket.socket(fileno=number))
        status = 0
    except BaseException:
        log.exception("a worker ended with an unexpected error")
    finally:
        sys.stderr.flush()
        os._exit(status)


def _report_ends(connection: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            link.send(connection, {"type": "ended", "pid": pid, "status": status})


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
        for path in self.state.get("unlink", []):
            Path(path).unlink(missing_ok=True)

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
            raise_read_ahead(self._directory)
            started()

        self._channel = Channel(
            orders.descriptors[f"{FUSE}{orders.slot}"],
            Handlers(self._filesystem),
            self._options.request_deadline_s,
            initialized=initialized,
            foreign_interrupt=self._pass_interrupt_on,
        )
        orders.say("ready")
        if await self._wait_for_go():
            await self._serve(self._channel)

    def _mount(self) -> None:
        """Mount, make a channel for each worker, and have the supervisor hold them all."""
        descriptor = kernel.attach(self._directory, kernel_options(self._options))
        descriptors = {f"{FUSE}0": descriptor}
        try:
            for slot in range(1, self._orders.count):
                descriptors[f"{FUSE}{slot}"] = kernel.clone_device(descriptor)
        finally:
            mounted = find_mount(self._directory)
            self._orders.hold(descriptors, device=mounted.device if mounted else "")

    async def _wait_for_go(self) -> bool:
        while (order := await self._orders.receive()) is not None:
            if order["type"] == "go":
                self._orders.generation, self._orders.restarts = order["generation"], order["restarts"]
                return True
        return False

    async def _serve(self, channel: Channel) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey, channel, nursery)
            if await channel.serve():
                self._orders.remember(unmounted=True)
                self._orders.say("unmounted")
            nursery.cancel_scope.cancel()

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
            elif kind == "note":
                self._orders.problem = order["problem"]
            elif kind in self._orders.handlers:
                self._orders.handlers[kind](order)
        if not await self._orders.is_orphaned():
            nursery.cancel_scope.cancel()
            return
        log.error("the supervisor is gone: unmounting %s", self._directory)
        self._orders.unlink()
        await self._unmount()

    async def _unmount(self) -> None:
        """Lazily: who uses it now may go on. Only this mount, not another that has come to its place."""
        mounted = find_mount(self._directory)
        if mounted is not None and mounted.device == self._orders.state.get("device"):
            with contextlib.suppress(MountError):
                await trio.to_thread.run_sync(lambda: kernel.unmount(self._directory, lazy=True))

    def _pass_interrupt_on(self, unique: int) -> None:
        if self._orders.count > 1:
            self._orders.say("relay", message={"type": "interrupt", "unique": unique})
