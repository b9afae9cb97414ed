"""Progress on a terminal while a tree is published."""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cvfs.progress import Bar, progress_bar
from publisher.listing import SourceTree
from publisher.publish import Watch
from publisher.report import Counts


@contextmanager
def watching() -> Iterator[Watch]:
    """Shows progress on stderr until the block ends, then takes it away."""
    with progress_bar("Publishing") as bar:
        shown = _Shown(bar)
        try:
            yield Watch(shown.begin, shown.tick)
        finally:
            shown.stop()


class _Shown:
    """Feeds the bar; a thread walks ahead through the tree to learn how much there is to do."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._counts = Counts()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, source: SourceTree, counts: Counts) -> None:
        self._counts = counts
        self._thread = threading.Thread(target=self._measure, args=(source.path,), daemon=True)
        self._thread.start()

    def tick(self) -> None:
        counts = self._counts
        self._bar.show(max(counts.files, counts.files_read), max(counts.tree_bytes, counts.read_bytes))

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
        self._bar.expect(total_bytes)
