"""How far the work on a tree has come, and what went wrong on the way."""

from collections.abc import Callable
from dataclasses import dataclass

from cvfs.errors import CvfsError

_TOLD = 20
"""Errors told one by one; a server that is down would else be told of once for each file."""


@dataclass(slots=True)
class Tally:
    """Files and bytes that are done; `present` of these files without work, because they were there. `failed` are not
    done. `tell` gets a line for each of the first errors; `show` the files and bytes, whenever they change."""

    tell: Callable[[str], None]
    show: Callable[[int, int], None] = lambda files, size_bytes: None
    files: int = 0
    size_bytes: int = 0
    present: int = 0
    failed: int = 0

    def add(self, files: int, size_bytes: int) -> None:
        """So much more is done."""
        self.files += files
        self.size_bytes += size_bytes
        self.show(self.files, self.size_bytes)

    def fail(self, path: bytes, error: CvfsError) -> None:
        """A file could not be done; the others go on."""
        self.failed += 1
        if self.failed <= _TOLD:
            name, text = path.decode("utf-8", "backslashreplace"), str(error)
            self.tell(text if name in text else f"{name}: {text}")
        elif self.failed == _TOLD + 1:
            self.tell("more errors like these are only counted")
