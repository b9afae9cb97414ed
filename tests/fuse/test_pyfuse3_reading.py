"""What pyfuse3's tasks wait with: who has answered goes on, and those that wait take over when it cannot."""

import os

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cvfs.fuse.pyfuse3_reading import Trio
from tests.in_trio import in_trio


def stand_in() -> Trio:
    return Trio(lambda: 0)


def test_all_else_is_trio() -> None:
    trio_of_ours = stand_in()
    assert trio_of_ours.ClosedResourceError is trio.ClosedResourceError
    assert trio_of_ours.open_nursery is trio.open_nursery
    assert trio_of_ours.lowlevel.current_task is trio.lowlevel.current_task


@in_trio
async def test_who_has_answered_goes_on_though_others_wait() -> None:
    lock = stand_in().Lock()
    had_it: list[str] = []

    async def other() -> None:
        async with lock:
            had_it.append("other")

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(other)
            await wait_all_tasks_blocked()
        for _ in range(3):
            async with lock:
                had_it.append("first")
        async with lock:
            await wait_all_tasks_blocked()
            assert had_it == ["first"] * 3, "it is woken, and waits again"
        await wait_all_tasks_blocked()
        assert had_it == ["first"] * 3 + ["other"]


@in_trio
async def test_of_those_that_wait_one_has_it_at_a_time_and_all_do() -> None:
    lock = stand_in().Lock()
    inside = most = done = 0

    async def one() -> None:
        nonlocal inside, most, done
        async with lock:
            inside += 1
            most = max(most, inside)
            await trio.lowlevel.checkpoint()
            inside -= 1
            done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
    assert (most, done) == (1, 5)


@in_trio
async def test_one_that_is_given_up_leaves_the_lock_to_the_next() -> None:
    lock = stand_in().Lock()

    async def hold(scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                await trio.sleep_forever()

    first, second = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, first)
        await wait_all_tasks_blocked()
        nursery.start_soon(hold, second)
        await wait_all_tasks_blocked()
        first.cancel()
        second.cancel()
    with trio.fail_after(1):
        async with lock:
            pass


@in_trio
async def test_a_request_that_is_there_takes_no_way_around_the_loop(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x")
    waiting = stand_in().lowlevel.wait_readable(pipe[0])
    with pytest.raises(StopIteration):
        waiting.send(None)


@in_trio
async def test_a_request_that_comes_late_is_waited_for(pipe: tuple[int, int]) -> None:
    low = stand_in().lowlevel
    came = trio.Event()

    async def wait() -> None:
        await low.wait_readable(pipe[0])
        came.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not came.is_set()
        os.write(pipe[1], b"x")
        with trio.fail_after(5):
            await came.wait()


@in_trio
async def test_nobody_looks_while_a_request_waits(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[None] = []
    monkeypatch.setattr(os, "sched_yield", lambda: looks.append(None))
    under_way: list[None] = []
    low = Trio(lambda: under_way).lowlevel
    os.write(pipe[1], b"x")
    await low.wait_readable(pipe[0])
    assert os.read(pipe[0], 1)
    under_way.append(None)
    with trio.move_on_after(0.01) as scope:
        await low.wait_readable(pipe[0])
    assert scope.cancelled_caught
    assert not looks
