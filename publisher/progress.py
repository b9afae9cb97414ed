"""Progress on a terminal while a tree is published."""

import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from cvfs import terminal
from cvfs.terminal import show_count, show_size
from publisher.listing import SourceTree
from publisher.publish import Watch
from publisher.report import Counts

_TICK_S = 0.1
_BAR_WIDTH = 16


class _Figures(ProgressColumn):
    """Files and bytes done, bytes a second, and the time left as soon as it can be told. Fits into 80 columns."""

    def render(self, task: Task) -> Text:
        done = f"{show_count(task.fields['files'], 'file')}, {show_size(int(task.completed))}"
        if not task.speed:
            return Text(done)
        left_s = task.time_remaining
        left = "" if left_s is None else f", {timedelta(seconds=int(left_s))} left"
        return Text(f"{done}, {show_size(int(task.speed))}/s{left}", no_wrap=True)


@contextmanager
def watching() -> Iterator[Watch]:
    """Shows progress on stderr until the block ends, then takes it away."""
    columns = (TextColumn("Publishing"), BarColumn(_BAR_WIDTH), _Figures())
    with Progress(*columns, console=terminal.console, transient=True) as display:
        shown = _Shown(display)
        try:
            yield Watch(shown.begin, shown.tick)
        finally:
            shown.stop()


class _Shown:
    """Feeds the display; a thread walks ahead through the tree to learn how much there is to do."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._task = display.add_task("publish", total=None, files=0)
        self._counts = Counts()
        self._last_s = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, source: SourceTree, counts: Counts) -> None:
        self._counts = counts
        self._thread = threading.Thread(target=self._measure, args=(source.path,), daemon=True)
        self._thread.start()

    def tick(self) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s >= _TICK_S:
            self._last_s = now_s
            counts = self._counts
            files, done_bytes = max(counts.files, counts.files_read), max(counts.tree_bytes, counts.read_bytes)
            self._display.update(self._task, completed=done_bytes, files=files)

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _measure(self, path: str) -> None:
        """The total is known when the walk is done; what cannot be read is not this thread's business."""
        total_bytes = 0
        for _, _, names, descriptor in os.fwalk(path):
            if self._stopped.is_set():
                return
            for name in names:
                try:
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                except OSError:
                    continue
                total_bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0
        self._display.update(self._task, total=total_bytes)
