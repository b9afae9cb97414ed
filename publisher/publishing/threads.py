"""The threads that work for a publish."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

READERS = 16
"""Threads that read from a disk that makes one wait. A guess: a network file system answers so many as soon as one."""


def usable_cpus() -> int:
    """The processors that this process may use: a batch system or a container may leave it fewer than the host has."""
    return len(os.sched_getaffinity(0))


class Threads(NamedTuple):
    """Those that compress and store packs, those that wait for slow disks, and the one that reads large files: apart,
    so that none queues behind the others' work."""

    packers: ThreadPoolExecutor
    readers: ThreadPoolExecutor
    cutter: ThreadPoolExecutor

    @classmethod
    def start(cls, stack: ExitStack, packers: int) -> "Threads":
        """They end with `stack`. None is started before there is work for it."""
        counts = {"pack": packers, "read": READERS, "cut": 1}
        return cls(*(stack.enter_context(ThreadPoolExecutor(count, name)) for name, count in counts.items()))

    def give_up(self) -> None:
        """Begin nothing more."""
        for executor in self:
            executor.shutdown(wait=False, cancel_futures=True)
