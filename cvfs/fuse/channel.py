"""The channel: requests read from a descriptor of /dev/fuse, and their replies written to it, under trio.

What can be answered from memory is answered in the read loop, before anything else is read. The rest goes to tasks, so
that a request which waits for the network keeps none that need not from being answered.
"""

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
import trio

from cvfs.errors import FormatError
from cvfs.fuse.errno_table import refusal
from cvfs.fuse.handlers import Handlers, Reply
from cvfs.fuse.lingering import Linger
from cvfs.fuse.protocol import negotiation, requests
from cvfs.fuse.protocol.bodies import Request
from cvfs.fuse.protocol.codes import READ_BUFFER_BYTES, RESENT_BIT, UNANSWERED_OPCODES, Opcode, opcode_name
from cvfs.fuse.protocol.negotiation import Session, Wishes
from cvfs.fuse.protocol.replies import encode_error
from cvfs.fuse.signals import has_given_up

log = logging.getLogger(__name__)

MAX_TASKS: Final = 1024
"""Requests worked on at once; those behind them wait in a queue, which the number of callers bounds. A guess: some KiB
each, and more than any host has threads that fault in one mount at a time."""

_LOOK_AGAIN_S: Final = 0.1
"""Soon enough for who has pressed Ctrl-C, and 30 us each."""

_WISHES: Final = Wishes()
_GONE: Final = errno.ENODEV
_TRY_AGAIN: Final = (errno.EINTR, errno.ENOENT)
"""ENOENT: the request that was to be read has been given up meanwhile."""


class Statistics(msgspec.Struct):
    """Since the start. `by_opcode` counts requests. `refused` replies are those the kernel did not want: their callers
    had given up (ENOENT), or they were wrong. `failed` were answered EIO or ETIMEDOUT, `interrupted` EINTR."""

    by_opcode: dict[int, int] = msgspec.field(default_factory=dict)
    waited: int = 0
    refused: int = 0
    failed: int = 0
    interrupted: int = 0

    def by_name(self) -> dict[str, int]:
        return {opcode_name(opcode): count for opcode, count in sorted(self.by_opcode.items())}


class _Task(NamedTuple):
    request: Request
    scope: trio.CancelScope


class Channel:
    """One descriptor of a FUSE connection, and the requests under way that came through it.

    `session` is what was agreed on if the connection is taken over from another process; None: INIT is still to come,
    and `initialized(session)` is called when it was answered. `foreign_interrupt(unique)` is told of an interrupt for
    a request that is not ours: another worker may have it. `has_given_up(thread)` says of a caller that was sent a
    signal whether it is to have EINTR.
    """

    def __init__(
        self,
        descriptor: int,
        handlers: Handlers,
        deadline_s: float,
        *,
        wishes: Wishes = _WISHES,
        initialized: Callable[[Session], None] = lambda session: None,
        foreign_interrupt: Callable[[int], None] = lambda unique: None,
        has_given_up: Callable[[int], bool] = has_given_up,
    ) -> None:
        self._descriptor = descriptor
        self._handlers = handlers
        self._deadline_s = deadline_s
        self._wishes = wishes
        self._initialized = initialized
        self._foreign_interrupt, self._has_given_up = foreign_interrupt, has_given_up
        self._tasks: dict[int, _Task] = {}
        self._queue: dict[int, tuple[Request, float]] = {}
        self._signalled: set[int] = set()
        """Requests whose callers were sent a signal, and wait on."""
        self._nursery: trio.Nursery | None = None
        self._reading = trio.CancelScope()
        self.statistics = Statistics()
        os.set_blocking(descriptor, False)

    async def serve(self) -> bool:
        """Answer until the mount is gone, or until `stop`: then what was begun is still answered. Is it gone?

        Raises OSError if the descriptor cannot be read. Cancelled: what is under way goes unanswered.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            with self._reading:
                await self._read_requests(nursery)
                nursery.cancel_scope.cancel()
        self._nursery = None
        return not self._reading.cancelled_caught

    def stop(self) -> None:
        """Read no more requests: another process does, or will."""
        self._reading.cancel()

    @property
    def under_way(self) -> int:
        """The number of requests that are being worked on, or wait for it."""
        return len(self._tasks) + len(self._queue)

    def interrupt(self, unique: int) -> bool:
        """The caller of a request was sent a signal: give the request up if the caller has; or does later, since the
        kernel says so only once. False if it is not under way here."""
        request = self._under_way(unique)
        if request is None:
            return False
        if self._has_given_up(request.pid):
            self._give_up(unique)
        elif self._nursery is not None:
            if not self._signalled:
                self._nursery.start_soon(self._watch_signalled)
            self._signalled.add(unique)
        return True

    async def _watch_signalled(self) -> None:
        while self._signalled:
            await trio.sleep(_LOOK_AGAIN_S)
            for unique in [*self._signalled]:
                request = self._under_way(unique)
                if request is None or self._has_given_up(request.pid):
                    self._signalled.remove(unique)
                    self._give_up(unique)

    def _under_way(self, unique: int) -> Request | None:
        task = self._tasks.get(unique)
        return task.request if task is not None else self._queue.get(unique, (None, 0))[0]

    def _give_up(self, unique: int) -> None:
        if unique in self._tasks:
            self._tasks[unique].scope.cancel()
        elif self._queue.pop(unique, None) is not None:
            self._interrupted(unique)

    async def _read_requests(self, nursery: trio.Nursery) -> None:
        descriptor = self._descriptor
        linger = Linger(descriptor)
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            try:
                self._take_batch(linger, nursery)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno == _GONE:
                    return
                if error.errno not in _TRY_AGAIN:
                    raise

    def _take_batch(self, linger: Linger, nursery: trio.Nursery) -> None:
        """Answer what there is, and what follows at once. Raises OSError if there is nothing to be read."""
        descriptor, read, take = self._descriptor, os.read, self._take
        take(read(descriptor, READ_BUFFER_BYTES), nursery)
        while linger.is_next(self._tasks):
            take(read(descriptor, READ_BUFFER_BYTES), nursery)

    def _take(self, data: bytes, nursery: trio.Nursery) -> None:
        """Answer one request, or have it answered. Only a descriptor that cannot be written to raises."""
        try:
            request = requests.decode_request(data)
        except FormatError as error:
            log.error("%s", error)  # noqa: TRY400
            self.statistics.failed += 1
            self._write(encode_error(int.from_bytes(data[8:16], sys.byteorder), errno.EIO))
            return
        opcode = request.opcode
        by_opcode = self.statistics.by_opcode
        by_opcode[opcode] = by_opcode.get(opcode, 0) + 1
        try:
            if opcode in _OURS:
                self._take_ours(request)
                return
            reply = self._handlers.answer_nowait(request)
        except Exception as error:  # noqa: BLE001
            reply = self._refusal(request, error)
        if reply is None:
            self._wait_for(request, nursery)
        else:
            self._write(reply)
            if opcode == Opcode.READ:
                self._make_ready(request)

    def _make_ready(self, answered: Request) -> None:
        """Whoever asks for what fails here gets the error."""
        try:
            self._handlers.make_ready(answered)
        except Exception as error:  # noqa: BLE001
            log.debug("what may be read next: %r", error)

    def _take_ours(self, request: Request) -> None:
        if request.opcode == Opcode.INTERRUPT:
            unique = requests.decode_interrupt(request.data)
            # What was repeated may have been given to several, of whom only the last can answer it.
            if not self.interrupt(unique) or unique & RESENT_BIT:
                self._foreign_interrupt(unique)
        elif request.opcode == Opcode.INIT:
            self._take_init(request)

    def _take_init(self, request: Request) -> None:
        session = negotiation.negotiate(negotiation.decode_init(request.data), self._wishes)
        if session is None:
            self._write(negotiation.encode_our_version(request.unique))
            return
        self._write(negotiation.encode_init(request.unique, session))
        self._initialized(session)

    def _wait_for(self, request: Request, nursery: trio.Nursery) -> None:
        if request.unique in self._tasks or request.unique in self._queue:
            return  # repeated once more for another worker that died; the answer to come is good for both
        self.statistics.waited += 1
        deadline = trio.current_time() + self._deadline_s
        if len(self._tasks) >= MAX_TASKS:
            self._queue[request.unique] = request, deadline
        else:
            self._start(request, deadline, nursery)

    def _start(self, request: Request, deadline: float, nursery: trio.Nursery) -> None:
        scope = trio.CancelScope(deadline=deadline)
        self._tasks[request.unique] = _Task(request, scope)
        nursery.start_soon(self._work, request, scope, nursery)

    async def _work(self, request: Request, scope: trio.CancelScope, nursery: trio.Nursery) -> None:
        """Answer one request after its wait; then, begin with the next in the queue."""
        reply: Reply | None = None
        try:
            with scope:
                reply = await self._answer(request)
        finally:
            del self._tasks[request.unique]
        if reply is not None:
            self._write(reply)
        elif trio.current_time() >= scope.deadline:
            self._write(self._refusal(request, trio.TooSlowError()))
        else:
            self._interrupted(request.unique)
        if self._queue:
            following, deadline = self._queue.pop(next(iter(self._queue)))
            self._start(following, deadline, nursery)

    async def _answer(self, request: Request) -> Reply:
        try:
            return await self._handlers.answer(request)
        except Exception as error:  # noqa: BLE001
            return self._refusal(request, error)

    def _refusal(self, request: Request, error: Exception) -> bytes:
        number = refusal(opcode_name(request.opcode), error)
        if number in (errno.EIO, errno.ETIMEDOUT):
            self.statistics.failed += 1
        return encode_error(request.unique, number)

    def _interrupted(self, unique: int) -> None:
        self.statistics.interrupted += 1
        self._write(encode_error(unique, errno.EINTR))

    def _write(self, reply: Reply) -> None:
        """What the kernel refuses is counted: its caller is gone, or gets an error by what the kernel makes of it."""
        try:
            if isinstance(reply, bytes):
                os.write(self._descriptor, reply)
            else:
                os.writev(self._descriptor, reply)
        except OSError as error:
            self.statistics.refused += 1
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                log.warning("the kernel refused a reply of %d bytes: %s", _size(reply), error.strerror)


_OURS: Final = UNANSWERED_OPCODES | {int(Opcode.INIT)}
"""What is not asked of the file system."""


def _size(reply: Reply) -> int:
    return len(reply) if isinstance(reply, bytes) else sum(map(len, reply))
