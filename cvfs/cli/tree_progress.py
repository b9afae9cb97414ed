"""What the commands that work on whole trees tell: a bar while they run, errors as they come, how it ended."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from cvfs.errors import PartialError
from cvfs.terminal import show_count
from cvfs.trees.tally import Tally

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


def check(tally: Tally, remedy: str) -> None:
    """Raises PartialError if something failed; `remedy` says what to do."""
    if tally.failed:
        raise PartialError(f"{show_count(tally.failed, 'file')} failed, {tally.files:,} are done: {remedy}")
