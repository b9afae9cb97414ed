"""Progress on a terminal while a tree is published."""

import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from cvfs.errors import PublishError
from cvfs.progress import Bar, progress_bar
from publisher.publishing.options import Watch
from publisher.publishing.report import Counts
from publisher.source.tree import Directory, SourceTree

_IDLE = 3.0
"""Seconds that the walk ahead waits for each that it works. A guess: most trees are known long before they are read."""


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
        self.stop()  # A publish that had to begin again.
        self._counts, self._stopped = counts, threading.Event()
        self._thread = threading.Thread(target=self._measure, args=(source, self._stopped), daemon=True)
        self._thread.start()

    def tick(self) -> None:
        counts = self._counts
        self._bar.show(max(counts.files, counts.files_read), max(counts.tree_bytes, counts.read_bytes))

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _measure(self, source: SourceTree, stopped: threading.Event) -> None:
        """The total is known when the walk is done; what cannot be read is not this thread's business."""
        total_bytes = 0
        with suppress(PublishError), closing(source.again()) as tree:
            for size_bytes in _sizes(tree, stopped):
                total_bytes += size_bytes
            if not stopped.is_set():
                self._bar.expect(total_bytes)


def _sizes(tree: SourceTree, stopped: threading.Event) -> Iterator[int]:
    """The sizes of the files of one directory after another, until the end or `stopped`.

    It takes a part of the time only: to publish needs the same disk and the same interpreter.
    """
    began_s = time.monotonic()
    for directory in tree.walk():
        yield _size(tree, directory)
        now_s = time.monotonic()
        if stopped.wait(_IDLE * (now_s - began_s)):
            return
        began_s = time.monotonic()


def _size(tree: SourceTree, directory: Directory) -> int:
    descriptor, size_bytes = tree.open_directory(directory.path), 0
    try:
        for name, is_directory in directory.listing.names:
            if not is_directory:
                with suppress(OSError):
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    size_bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0
    finally:
        os.close(descriptor)
    return size_bytes
