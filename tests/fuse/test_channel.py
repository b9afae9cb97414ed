"""The channel's loop, with a socket in place of the kernel and handlers that do what a test says."""

import errno
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from cvfs.errors import PathError, UnreachableError
from cvfs.fuse import channel
from cvfs.fuse.channel import Channel
from cvfs.fuse.handlers import Handlers, Reply
from cvfs.fuse.protocol.bodies import Request
from cvfs.fuse.protocol.codes import Opcode
from cvfs.fuse.protocol.replies import encode_reply
from tests.fuse import kernel_side

DEADLINE_S = 20.0


class Scripted(Handlers):
    """Answers at once unless the node is 2: then it waits until told; node 3 is a bug, node 4 an error."""

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.release = trio.Event()
        self.waiting = 0
        self.read: list[int] = []
        """The nodes after whose READs the next was to be made ready."""

    def answer_nowait(self, request: Request) -> Reply | None:
        if request.node == 2:
            return None
        if request.node == 3:
            raise ZeroDivisionError
        if request.node == 4:
            raise PathError(errno.ENOTDIR)
        if request.opcode in (Opcode.GETATTR, Opcode.READ):
            return encode_reply(request.unique, b"at once")
        return super().answer_nowait(request)

    def make_ready(self, answered: Request) -> None:
        self.read.append(answered.node)
        if answered.node == 5:
            raise ZeroDivisionError

    async def answer(self, request: Request) -> Reply:
        self.waiting += 1
        await self.release.wait()
        if request.opcode == Opcode.READLINK:
            raise UnreachableError("http://x", "no route")
        return encode_reply(request.unique, b"later")


class Kernel:
    """The other end: sends requests, receives replies as (unique, errno, payload)."""

    def __init__(self, end: socket.socket) -> None:
        self._end = trio.socket.from_stdlib_socket(end)

    async def ask(self, opcode: int, unique: int, node: int = 1, body: bytes = b"") -> None:
        await self._end.send(kernel_side.request(opcode, body, unique=unique, node=node))

    async def reply(self) -> tuple[int, int, bytes]:
        data = await self._end.recv(1 << 16)
        size, number, unique = struct.unpack_from("=IiQ", data)
        assert size == len(data)
        return unique, -number, data[16:]

    async def send(self, data: bytes) -> None:
        await self._end.send(data)


def drive(test: Callable[[Kernel, Scripted, Channel], Awaitable[None]], clock: Any = None, **options: Any) -> Channel:
    """Run `test` beside a channel; the channel, stopped."""

    async def main() -> Channel:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            handlers = Scripted()
            loop = Channel(theirs.fileno(), handlers, DEADLINE_S, **options)
            with trio.fail_after(DEADLINE_S * 10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(loop.serve)
                    await test(Kernel(ours), handlers, loop)
                    loop.stop()
            return loop

    return trio.run(main, clock=clock)


GETATTR = bytes(16)


def test_what_waits_keeps_nothing_else_from_its_answer() -> None:
    async def test(kernel: Kernel, handlers: Scripted, loop: Channel) -> None:
        await kernel.ask(Opcode.READLINK, 10, node=2)
        await kernel.ask(Opcode.GETATTR, 12, body=GETATTR)
        assert await kernel.reply() == (12, 0, b"at once")
        assert loop.under_way == 1
        handlers.release.set()
        assert (await kernel.reply())[:2] == (10, errno.EIO)

    assert drive(test).statistics.failed == 1


def test_what_comes_next_is_made_ready_after_a_read_and_may_fail() -> None:
    async def test(kernel: Kernel, handlers: Scripted, loop: Channel) -> None:
        for unique, (opcode, node) in enumerate([(Opcode.READ, 1), (Opcode.READ, 5), (Opcode.GETATTR, 1)], 10):
            await kernel.ask(opcode, unique, node)
            assert await kernel.reply() == (unique, 0, b"at once")
        await kernel.ask(Opcode.READ, 21, node=2)
        handlers.release.set()
        assert (await kernel.reply())[0] == 21
        assert handlers.read == [1, 5]

    assert drive(test).statistics.failed == 0


def test_a_request_that_is_repeated_while_it_waits_is_answered_once() -> None:
    async def test(kernel: Kernel, handlers: Scripted, loop: Channel) -> None:
        for _ in range(2):
            await kernel.ask(Opcode.GETATTR, 10 | 1 << 63, node=2, body=GETATTR)
        await kernel.ask(Opcode.GETATTR, 12, body=GETATTR)
        assert (await kernel.reply())[0] == 12
        assert loop.under_way == 1
        handlers.release.set()
        assert await kernel.reply() == (10 | 1 << 63, 0, b"later")
        await kernel.ask(Opcode.GETATTR, 14, body=GETATTR)
        assert (await kernel.reply())[0] == 14

    drive(test)


def test_an_interrupt_ends_the_request_and_no_other() -> None:
    async def test(kernel: Kernel, handlers: Scripted, loop: Channel) -> None:
        await kernel.ask(Opcode.GETATTR, 10, node=2, body=GETATTR)
        await kernel.ask(Opcode.GETATTR, 12, node=2, body=GETATTR)
        await kernel.ask(Opcode.INTERRUPT, 11, body=struct.pack("=Q", 10))
        assert await kernel.reply() == (10, errno.EINTR, b"")
        handlers.release.set()
        assert await kernel.reply() == (12, 0, b"later")
        await kernel.ask(Opcode.INTERRUPT, 13, body=struct.pack("=Q", 12))
        await kernel.ask(Opcode.GETATTR, 14, body=GETATTR)
        assert await kernel.reply() == (14, 0, b"at once")

    foreign: list[int] = []
    options = {"foreign_interrupt": foreign.append, "has_given_up": lambda thread: thread == 4711}
    assert drive(test, **options).statistics.interrupted == 1
    assert foreign == [12]


def test_caller_who_goes_on_after_a_signal_is_waited_for_until_it_does_not() -> None:
    async def test(kernel: Kernel, handlers: Scripted, loop: Channel) -> None:
        for unique in (10, 12):
            await kernel.ask(Opcode.GETATTR, unique, node=2, body=GETATTR)
            await kernel.ask(Opcode.INTERRUPT, unique + 1, body=struct.pack("=Q", unique))
        await kernel.ask(Opcode.GETATTR, 14, body=GETATTR)
        assert await kernel.reply() == (14, 0, b"at once")
        while looks < 6:
            await trio.testing.wait_all_tasks_blocked()
        has_ended.append(True)
        assert sorted([await kernel.reply() for _ in range(2)]) == [(10, errno.EINTR, b""), (12, errno.EINTR, b"")]

    def has_given_up(thread: int) -> bool:
        nonlocal looks
        looks += 1
        return bool(has_ended)

    looks, has_ended = 0, list[bool]()
    assert drive(test, has_given_up=has_given_up).statistics.interrupted == 2


def test_answer_after_a_signal() -> None:
    async def test(kernel: Kernel, handlers: Scripted, loop: Channel) -> None:
        await kernel.ask(Opcode.GETATTR, 10, node=2, body=GETATTR)
        await kernel.ask(Opcode.INTERRUPT, 11, body=struct.pack("=Q", 10))
        handlers.release.set()
        assert await kernel.reply() == (10, 0, b"later")

    assert drive(test, has_given_up=lambda thread: False).statistics.interrupted == 0


def test_every_request_has_a_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async def test(kernel: Kernel, handlers: Scripted, loop: Channel) -> None:
        await kernel.ask(Opcode.GETATTR, 10, node=2, body=GETATTR)
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(DEADLINE_S + 1)
        assert await kernel.reply() == (10, errno.ETIMEDOUT, b"")

    drive(test, autojump_clock)


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0.05)


def test_tasks_are_bounded_and_the_rest_waits_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_TASKS", 3)

    async def test(kernel: Kernel, handlers: Scripted, loop: Channel) -> None:
        for unique in range(10, 20):
            await kernel.ask(Opcode.GETATTR, unique, node=2, body=GETATTR)
        await kernel.ask(Opcode.INTERRUPT, 30, body=struct.pack("=Q", 15))
        await kernel.ask(Opcode.GETATTR, 40, body=GETATTR)
        assert await kernel.reply() == (15, errno.EINTR, b"")
        assert await kernel.reply() == (40, 0, b"at once")
        assert handlers.waiting == 3
        handlers.release.set()
        replies = [await kernel.reply() for _ in range(9)]
        assert sorted(replies) == [(unique, 0, b"later") for unique in range(10, 20) if unique != 15]

    drive(test)


def test_what_is_not_understood_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def test(kernel: Kernel, handlers: Scripted, loop: Channel) -> None:
        for opcode, unique, number in [
            (Opcode.OPEN, 10, errno.ENOSYS),
            (99, 12, errno.ENOSYS),
            (4242, 14, errno.ENOSYS),
        ]:
            await kernel.ask(opcode, unique)
            assert await kernel.reply() == (unique, number, b"")
        for unique, opcode in enumerate((Opcode.MKDIR, Opcode.WRITE, Opcode.SETATTR), 20):
            await kernel.ask(opcode, unique)
            assert await kernel.reply() == (unique, errno.EROFS, b"")
        await kernel.ask(Opcode.GETATTR, 30, node=3, body=GETATTR)
        assert await kernel.reply() == (30, errno.EIO, b"")
        await kernel.ask(Opcode.GETATTR, 32, node=4, body=GETATTR)
        assert await kernel.reply() == (32, errno.ENOTDIR, b"")
        await kernel.ask(Opcode.LOOKUP, 34, body=b"no end")
        assert await kernel.reply() == (34, errno.EIO, b"")
        await kernel.send(kernel_side.request(Opcode.GETATTR, GETATTR, unique=36)[:-1])
        assert await kernel.reply() == (36, errno.EIO, b"")

    with caplog.at_level(logging.ERROR):
        assert drive(test).statistics.failed == 3
    assert "ZeroDivisionError" in caplog.text


def test_stopped_it_answers_what_it_has_begun() -> None:
    async def test(kernel: Kernel, handlers: Scripted, loop: Channel) -> None:
        await kernel.ask(Opcode.GETATTR, 10, node=2, body=GETATTR)
        await trio.testing.wait_all_tasks_blocked()
        loop.stop()
        await kernel.ask(Opcode.GETATTR, 12, body=GETATTR)
        handlers.release.set()
        assert await kernel.reply() == (10, 0, b"later")
        with trio.move_on_after(0.1) as scope:
            await kernel.reply()
        assert scope.cancelled_caught

    drive(test)


def test_refused_replies_are_counted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    answers = [errno.ENOENT, errno.EINVAL]
    write = os.write

    def refusing(descriptor: int, data: bytes) -> int:
        if answers:
            raise OSError(answers.pop(0), "refused")
        return write(descriptor, data)

    async def test(kernel: Kernel, handlers: Scripted, loop: Channel) -> None:
        for unique in (10, 12, 14):
            await kernel.ask(Opcode.GETATTR, unique, body=GETATTR)
        assert (await kernel.reply())[0] == 14

    monkeypatch.setattr(channel.os, "write", refusing)
    assert drive(test).statistics.refused == 2
    assert caplog.text.count("the kernel refused a reply") == 1
