"""Waiting for a request that is about to come.

A user's requests follow each other. A CPU that has nothing to do sleeps at once, and in a virtual machine takes 30 us
to wake, several times what a request takes. So after an answer the descriptor is looked at some more times for the
next request, and in between the CPU is lent to whatever else wants to run. If it came back only after a whole time
slice, CPUs are scarce: none goes to sleep, so looking gains nothing, and a process that has lent its CPU is let in
later than one that has waited. So for `_SCARCE_S` nothing is looked for. Nor is it if the last request came late: then
the next one will, too.
"""

import os
import select
import time
from typing import Final

import trio

_BATCH_S: Final = 2e-3
"""For so long requests are answered, and waited for, before other tasks get their turn: some 30 to 100 small ones."""

_GLANCE_S: Final = 0.5e-3
"""After this a task that can go on gets its turn: what is being fetched takes some turns until it is there, each of
which somebody may wait for. To look for one takes 5 us."""

_LOOKS: Final = 100
"""About 60 us: what `tar` does between two reads of small files, and twice what waking takes."""

_NEAR_S: Final = 200e-6
"""From an answer to the next request where it is worth looking for: what two CPUs take to wake, and some work."""

_TURN_S: Final = 1e-3
"""Of somebody who has much to do; to lend the CPU to nobody takes 0.3 us, to who asks next some ten."""

_SCARCE_S: Final = 0.1

_LINGER_MS: Final = 1
"""For how long the next request is waited for here before trio does: its way around is a seventh of the CPU of a small
one (97 against 84 us with the user on another, busy core)."""


class Linger:
    """For the requests of one descriptor of /dev/fuse. It blocks."""

    def __init__(self, descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        self._poll = poll.poll
        self._scarce_until = 0.0
        self._was_near = False
        self._begun = self._glanced = 0.0

    def is_next(self, is_any_under_way: object) -> object:
        """Whether there is a request to answer before other tasks get their turn. To be asked after each answer;
        nothing is waited for while a request waits for anything else."""
        now = time.perf_counter()
        if not self._begun:
            self._begun = self._glanced = now
        found: object = False
        if now - self._glanced < _GLANCE_S or not self._is_turn_over(now):
            found = self.is_ready() if is_any_under_way else self.comes_soon()
        if not found:
            self._begun = 0.0
        return found

    def _is_turn_over(self, now: float) -> bool:
        self._glanced = now
        return now - self._begun > _BATCH_S or _can_another_go_on()

    def is_ready(self) -> object:
        """Whether there is a request now. False is an empty list."""
        return self._poll(0)

    def comes_soon(self) -> object:
        """Whether there is a request within about a millisecond."""
        is_ready, clock = self._poll, time.perf_counter
        start = now = clock()
        if self._was_near and now >= self._scarce_until:
            for _ in range(_LOOKS):
                if found := is_ready(0):
                    return found
                os.sched_yield()
                now = clock()
                if now - start > _TURN_S:
                    self._scarce_until = now + _SCARCE_S
                    break
        found = is_ready(_LINGER_MS)
        self._was_near = bool(found) and clock() - start < _NEAR_S
        return found


def _can_another_go_on() -> bool:
    """Whether a task has something to do; one that waits for a thread has, when that is done."""
    now = trio.lowlevel.current_statistics()
    return now.tasks_runnable > 0 or now.run_sync_soon_queue_size > 0
