"""What the commands that work on whole trees tell: a bar while they run, errors as they come, how it ended."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from cvfs.errors import CacheError, CacheFullError, PartialError
from cvfs.terminal import show_count, show_size
from cvfs.trees.tally import Tally

if TYPE_CHECKING:
    from cvfs.cache import Cache
    from cvfs.trees.prefetching import Stock

_MORE_ROOM = "raise cache_limit, have more free on its disk, or name less"

Expect = Callable[[int], None]
"""Told how many bytes there will be, once that is known."""


@contextmanager
def watching(doing: str, *, quiet: bool) -> Iterator[tuple[Tally, Expect]]:
    """A tally that is shown on a terminal while the block runs."""
    with contextlib.ExitStack() as until_ended:
        if quiet or not sys.stderr.isatty():
            yield Tally(lambda line: click.echo(f"cvfs: error: {line}", err=True)), lambda size_bytes: None
            return
        from cvfs.progress import progress_bar  # rich takes longer to import than many a tree to copy

        bar = until_ended.enter_context(progress_bar(doing))
        yield Tally(lambda line: bar.tell(f"cvfs: error: {line}"), bar.show), bar.expect


def check_room(cache: "Cache", stock: "Stock", disk_bytes: int) -> None:
    """Say at once if a tree cannot come into the cache, where it will take `disk_bytes` at least: it would only push
    out what others need, and itself.

    Raises CacheError: it cannot be written; CacheFullError: it is too small. Nothing has changed then.
    """
    if not stock.lacking_files:
        return
    if not cache.directory.writable:
        raise CacheError(f"the cache {cache.directory.path} cannot be written: name another with --cache")
    most = cache.quota.use().most_bytes
    if disk_bytes > most:
        what = f"{show_size(disk_bytes)} in a cache that may have {show_size(most)}"
        raise CacheFullError(f"there is no room for {what}: {_MORE_ROOM}")


def check_cached(tally: Tally, stock: "Stock") -> None:
    """Raises PartialError: something failed, or is not in the cache."""
    if stock.lacking_files <= tally.failed:
        check(tally, "run it again to go on")
        return
    lacking = f"{show_count(stock.lacking_files, 'file')} of {stock.files:,}, {show_size(stock.lacking_bytes)}"
    failed = f"{show_count(tally.failed, 'file')} failed; " if tally.failed else ""
    raise PartialError(f"{failed}{lacking}, are not in the cache, which has no room for them: {_MORE_ROOM}")


def check(tally: Tally, remedy: str) -> None:
    """Raises PartialError if something failed; `remedy` says what to do."""
    if tally.failed:
        raise PartialError(f"{show_count(tally.failed, 'file')} failed, {tally.files:,} are done: {remedy}")
