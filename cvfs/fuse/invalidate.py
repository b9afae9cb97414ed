"""What the kernel has to be told when the revision changes, so that it believes nothing of the old one.

A changed file is a new inode and an unchanged one keeps its number, so cached bytes stay right whatever happens. What
can be wrong are names, listings, and the attributes of directories.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator

import msgspec
import trio

from cvfs.format.pages import Page
from cvfs.format.tree import Tree
from cvfs.format.tree.diff import diff
from cvfs.fuse.protocol import notices
from cvfs.model import BlobRef, Record
from cvfs.repository import Repository

log = logging.getLogger(__name__)


class Changes(msgspec.Struct):
    """Between two revisions: `names`, as (inode of the directory, name), that are another inode or none; `directories`
    whose listing or attributes changed, by inode."""

    names: list[tuple[int, bytes]] = msgspec.field(default_factory=list)
    directories: set[int] = msgspec.field(default_factory=set)


async def find_changes(old: Repository, new: Repository) -> Changes:
    """What a switch from `old` to `new` changes; every page that differs is brought first, of both.

    Raises what Fetcher.page does. Cancelled: back when the page that is on its way has come.
    """

    def load(ref: BlobRef) -> Page:
        return trio.from_thread.run(new.fetcher.page, ref)

    def compare() -> Changes:
        before = Tree(old.manifest.root, old.manifest.level, load)
        after = Tree(new.manifest.root, new.manifest.level, load)
        return collect(diff(before, after, load), new.directory_inode)

    return await trio.to_thread.run_sync(compare)


def collect(
    differences: Iterable[tuple[Record | None, Record | None]], directory_inode: Callable[[bytes], int]
) -> Changes:
    """The changes that the differences of two trees make.

    The name of a directory that stays one is none of them, since it keeps its inode: with a name the kernel forgets all
    that it has cached below it, and takes away what others have mounted there.
    """
    changes = Changes()
    for pair in differences:
        record = next(record for record in pair if record is not None)
        name, path = record.entry.name, record.path
        are_directories = [one is not None and one.entry.is_directory for one in pair]
        if name and not all(are_directories):
            parent = directory_inode(record.directory)
            changes.names.append((parent, name))
            changes.directories.add(parent)
        if any(are_directories):
            changes.directories.add(directory_inode(path))
    return changes


def notices_of(changes: Changes, *, epoch: bool) -> Iterator[bytes]:
    """The notifications that say it. With `epoch` one of them is for all names: each is looked up again when it is
    used next. That alone is not enough: nothing ever looks up the root, a working directory or an open directory."""
    if epoch:
        yield notices.encode_inc_epoch()
    else:
        for parent, name in changes.names:
            yield notices.encode_inval_entry(parent, name)
    for inode in changes.directories:
        yield notices.encode_inval_inode(inode)


def write_notices(descriptor: int, messages: Iterable[bytes]) -> None:
    """Say it to the kernel. It may wait for requests that are under way: call it in a thread, never in the loop that
    answers them."""
    for message in messages:
        try:
            os.write(descriptor, message)
        except FileNotFoundError:
            continue  # the kernel knew nothing of it
        except OSError as error:
            log.warning("the kernel refused a notification: %s", error.strerror)
            return
