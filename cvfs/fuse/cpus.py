"""Which CPUs a worker runs on, where a mount has several."""

import contextlib
import os
from collections.abc import Set


def share(cpus: Set[int], slot: int, count: int) -> set[int]:
    """Those that worker `slot` of `count` keeps to: such as follow each other in number. All, if there are fewer CPUs
    than workers."""
    if len(cpus) < count:
        return set(cpus)
    return set(sorted(cpus)[slot * len(cpus) // count : (slot + 1) * len(cpus) // count])


def keep_to_share(slot: int, count: int) -> None:
    """Have the calling thread, and all that it will start, keep to the share of a worker.

    The kernel puts a task that is woken beside the one that woke it, so without shares both workers run on one CPU for
    some time, or each on both in turn.
    """
    if count > 1:
        with contextlib.suppress(OSError):  # the CPUs have changed this moment
            os.sched_setaffinity(0, share(os.sched_getaffinity(0), slot, count))
