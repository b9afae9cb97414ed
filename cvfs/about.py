"""What a mount says of itself and of its files, in extended attributes that exist only for who asks for them by name.

They are in no list, so `ls -l` does not meet them, and cp(1), tar(1) and rsync(1) do not copy them.
"""

from collections.abc import Callable, Mapping
from typing import Final

import cvfs
from cvfs.file import File
from cvfs.model import Entry
from cvfs.repository import Repository

PREFIX: Final = b"user.cvfs."

_OF_ALL: Mapping[bytes, Callable[[Repository], str | None]] = {
    b"revision": lambda repository: str(repository.manifest.revision),
    b"root": lambda repository: repository.manifest.root.id.hex(),
    b"repository": lambda repository: repository.manifest.repository,
    b"mirror": lambda repository: repository.fetcher.mirror,
    b"version": lambda repository: cvfs.__version__,
}

_OF_FILES: Mapping[bytes, Callable[[Entry, File], str]] = {
    b"content_id": lambda entry, file: entry.content_id.hex(),
    b"cached": lambda entry, file: f"{file.cached_percent()}%",
}

NAMES: Final = tuple(PREFIX + name for name in (*_OF_ALL, *_OF_FILES))
"""All that there are."""


def of_any(name: bytes, repository: Repository) -> bytes | None:
    """The value of attribute `name` of whatever is in `repository`; None if there is none."""
    say = _OF_ALL.get(name.removeprefix(PREFIX))
    text = say(repository) if say else None
    return None if text is None else text.encode()


def of_file(name: bytes, file: File) -> bytes | None:
    """The value of attribute `name` of a regular file; None if there is none."""
    say = _OF_FILES.get(name.removeprefix(PREFIX))
    return say(file.entry, file).encode() if say else None
