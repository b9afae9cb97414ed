"""What a client does for the cache and its memory now and then, so rarely that it cannot be noticed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from cvfs.cache.quota import Quota
from cvfs.errors import CacheError
from cvfs.fetcher import Fetcher, Shared
from cvfs.fetcher.exploding import Exploder
from cvfs.heap import give_back

log = logging.getLogger(__name__)

_FIRST_S = 10.0
"""After the start, which is busy enough."""

_AGAIN_S = 3600.0
_PAUSE_S = 5.0
_EXPLODE_S = 2.0
_REST = 3
"""Times what exploding a pack took is rested after it: it never takes more than a quarter of one CPU from readers."""


async def keep_within_limits(quota: Quota) -> None:
    """Have the cache counted where that is needed, and give way to others on its disk, until cancelled."""
    wait_s = _FIRST_S
    with _surviving():
        wait_s = _FIRST_S if quota.ledger.read().is_known else 0.0
    while True:
        await trio.sleep(wait_s)
        wait_s = _AGAIN_S
        with _surviving():
            if not await trio.to_thread.run_sync(quota.maintain, abandon_on_cancel=True):
                wait_s = _FIRST_S


async def look_after(fetcher: Fetcher, exploding: trio.Lock, scope: trio.CancelScope) -> None:
    """What is done for one repository, until `scope` is cancelled. The repositories of a process explode in turns."""
    with scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_pages_young, fetcher)
            nursery.start_soon(explode_when_idle, fetcher.exploder, exploding)


async def keep_pages_young(fetcher: Fetcher) -> None:
    """Keep the pages in memory from being evicted, until cancelled: a mount that is used for days reads none anew."""
    while True:
        await trio.sleep(_AGAIN_S)
        with _surviving():
            await fetcher.touch_pages()


async def explode_when_idle(exploder: Exploder, turn: trio.Lock) -> None:
    """Make plain files of packs in the cache whenever none was brought for some seconds, until cancelled. The
    repositories of a process take turns."""
    while True:
        await exploder.activity.wait_for_pause(_EXPLODE_S)
        async with turn:
            with _surviving():
                await exploder.explode(_REST)
            await trio.to_thread.run_sync(give_back, abandon_on_cancel=True)


async def give_back_when_idle(memory: Shared) -> None:
    """Return what large buffers have taken to the system whenever none was made for some seconds, until cancelled."""
    while True:
        await memory.activity.wait_for_pause(_PAUSE_S)
        memory.rest()
        await trio.to_thread.run_sync(give_back, abandon_on_cancel=True)


@contextmanager
def _surviving() -> Iterator[None]:
    """Whatever goes wrong is logged, and tried again: a mount must not end by what it does in passing."""
    try:
        yield
    except CacheError as error:
        log.warning("%s", error)
    except Exception:
        log.exception("looking after the cache failed")
