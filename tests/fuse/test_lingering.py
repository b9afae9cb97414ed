"""Waiting for the next request: found when it comes, and not looked for where CPUs are scarce."""

import os
import time

import pytest
import trio

from cvfs.fuse import lingering
from cvfs.fuse.lingering import Linger
from tests.in_trio import in_trio


def test_what_is_there_is_found(pipe: tuple[int, int]) -> None:
    linger = Linger(pipe[0])
    assert not linger.is_ready()
    assert not linger.comes_soon()
    os.write(pipe[1], b"x")
    assert linger.is_ready()
    assert linger.comes_soon()


def is_near(linger: Linger) -> Linger:
    """The last request came soon after an answer."""
    linger._was_near = True
    return linger


def test_what_comes_while_it_is_looked_for_is_found(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def lend() -> None:
        looks.append(None)
        if len(looks) == 3:
            os.write(pipe[1], b"x")

    monkeypatch.setattr(os, "sched_yield", lend)
    assert is_near(Linger(pipe[0])).comes_soon()
    assert len(looks) == 3


def test_nobody_looks_where_the_last_one_took_its_time(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[None] = []
    monkeypatch.setattr(os, "sched_yield", lambda: looks.append(None))
    linger = Linger(pipe[0])
    assert not linger.comes_soon()
    assert not looks, "the first one"
    os.write(pipe[1], b"x")
    assert linger.comes_soon()
    assert os.read(pipe[0], 1)
    assert not linger.comes_soon()
    assert len(looks) == lingering._LOOKS, "the one before was there at once"
    assert not linger.comes_soon()
    assert len(looks) == lingering._LOOKS


def test_where_cpus_are_scarce_nobody_looks_for_a_while(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    now, lent_s, lent = [50.0], [lingering._TURN_S * 2], []

    def lend() -> None:
        lent.append(now[0])
        now[0] += lent_s[0]

    monkeypatch.setattr(os, "sched_yield", lend)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    linger = Linger(pipe[0])
    for _ in range(5):
        assert not is_near(linger).comes_soon()
    assert len(lent) == 1
    now[0] += lingering._SCARCE_S
    lent_s[0] = 0.0
    assert not is_near(linger).comes_soon()
    assert len(lent) == 1 + lingering._LOOKS, "somebody who takes a moment is no reason to stop"


@pytest.fixture
def ready(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Linger:
    """Of a descriptor that always has something to be read; each answer takes 0.1 ms."""
    now = [50.0]

    def clock() -> float:
        now[0] += 1e-4
        return now[0]

    os.write(pipe[1], b"x")
    linger = Linger(pipe[0])
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(linger, "comes_soon", linger.is_ready)
    return linger


def answers(linger: Linger) -> int:
    """How many requests are answered until other tasks get their turn."""
    count = 1
    while linger.is_next(is_any_under_way=False):
        count += 1
    return count


@in_trio
async def test_other_tasks_get_their_turn_after_a_while(ready: Linger) -> None:
    most = lingering._BATCH_S / 1e-4
    for _ in range(2):
        assert most <= answers(ready) <= most + 1 + lingering._GLANCE_S / 1e-4


@in_trio
async def test_a_task_that_can_go_on_gets_its_turn_sooner(ready: Linger) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
        assert 2 <= answers(ready) <= 2 + lingering._GLANCE_S / 1e-4


@in_trio
async def test_nothing_is_waited_for_while_a_request_is(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    linger = Linger(pipe[0])
    monkeypatch.setattr(linger, "comes_soon", lambda: pytest.fail("waited"))
    assert not linger.is_next(is_any_under_way=True)
