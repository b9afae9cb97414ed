"""Paths as a user gives them: symbolic links followed, directories listed, without a mount."""

import errno
from collections.abc import AsyncIterator
from functools import partial

from cvfs.errors import PathError
from cvfs.format.tree.lookup import Found
from cvfs.model import Entry, join, split
from cvfs.repository import Repository

MAX_LINKS = 40
"""Symbolic links followed for one path, as in the kernel."""


async def resolve(repository: Repository, path: bytes, *, follow: bool = True) -> Found:
    """The record that `path` leads to, from the root of the repository on; any slashes, "." and ".." as in a shell.

    Symbolic links are followed on the way, and at the end if `follow`. Raises PathError; ENOENT also for a link that
    leads out of the repository.
    """
    pending = path.split(b"/")[::-1]
    found, done, links = await _find(repository, b""), b"", 0
    while pending:
        name = pending.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            done, _ = split(done)
            continue
        found = await _find(repository, join(done, name))
        if not found.entry.is_symlink or not (pending or follow):
            done = join(done, name)
            continue
        links += 1
        _check_link(found.entry, path, links)
        pending += found.entry.target.split(b"/")[::-1]
    return found if not _came_back(found, done) else await _find(repository, done)


async def list_runs(repository: Repository, directory: bytes) -> AsyncIterator[tuple[Found, ...]]:
    """What `directory` lists, by name; as many at a time as stand in one page."""
    after = b""
    while True:
        found = await repository.bring(partial(repository.listing_nowait, directory, after))
        if found is None:
            return
        group = found.group
        yield tuple(
            Found(found.page, found.leaf, found.number, index) for index in range(found.index, len(group.entries))
        )
        after = group.names[-1]


async def list_tree(repository: Repository, top: Found) -> AsyncIterator[Found]:
    """`top` and, if it is a directory, all below it; a directory before what it lists."""
    yield top
    pending = [top.record.path] if top.entry.is_directory else []
    while pending:
        below = []
        async for run in list_runs(repository, pending.pop()):
            for found in run:
                yield found
                if found.entry.is_directory:
                    below.append(found.record.path)
        pending += reversed(below)


async def _find(repository: Repository, path: bytes) -> Found:
    return await repository.bring(lambda: repository.find_nowait(path))


def _check_link(entry: Entry, path: bytes, links: int) -> None:
    if links > MAX_LINKS:
        raise PathError(errno.ELOOP, path)
    if entry.target.startswith(b"/"):
        raise PathError(
            errno.ENOENT, path + b" (a symbolic link leads out of the repository, to " + entry.target + b")"
        )


def _came_back(found: Found, done: bytes) -> bool:
    """Whether the last step was a ".."."""
    return found.record.path != done
