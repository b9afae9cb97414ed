"""Progress of work on many files, on a terminal: one line of at most 80 columns, gone when the work is done."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from cvfs import terminal
from cvfs.terminal import show_count, show_size

_TICK_S = 0.1
_BAR_WIDTH = 16


class Bar:
    """What is shown. Its methods may be called as often as there is something to say, from any thread."""

    def __init__(self, display: Progress, doing: str) -> None:
        self._display = display
        self._task = display.add_task(doing, total=None, files=0)
        self._last_s = 0.0

    def expect(self, size_bytes: int) -> None:
        """How many bytes there will be: from now on there is a time left."""
        self._display.update(self._task, total=size_bytes)

    def show(self, files: int, size_bytes: int) -> None:
        """How much is done."""
        now_s = time.monotonic()
        if now_s - self._last_s >= _TICK_S:
            self._last_s = now_s
            self._display.update(self._task, completed=size_bytes, files=files)

    def tell(self, line: str) -> None:
        """A line that stays, above the bar."""
        self._display.console.print(line, markup=False, soft_wrap=True)


class _Figures(ProgressColumn):
    """Files and bytes done, bytes a second, and the time left as soon as it can be told."""

    def render(self, task: Task) -> Text:
        done = f"{show_count(task.fields['files'], 'file')}, {show_size(int(task.completed))}"
        if not task.speed:
            return Text(done)
        left_s = task.time_remaining
        left = "" if left_s is None else f", {timedelta(seconds=int(left_s))} left"
        return Text(f"{done}, {show_size(int(task.speed))}/s{left}", no_wrap=True)


@contextmanager
def progress_bar(doing: str) -> Iterator[Bar]:
    """A bar on stderr until the block ends; `doing` is what is done, in a word."""
    columns = (TextColumn(doing), BarColumn(_BAR_WIDTH), _Figures())
    with Progress(*columns, console=terminal.console, transient=True) as display:
        yield Bar(display, doing)
