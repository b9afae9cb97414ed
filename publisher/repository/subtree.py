"""Putting a tree, or nothing, in place of one path of a repository, and what that means for the paths around it."""

import heapq
import os
from collections.abc import Iterable, Iterator
from itertools import chain

from msgspec.structs import replace

from cvfs.errors import FormatError, PublishError
from cvfs.format.entries import check_directory
from cvfs.format.pages import Key, key_of, order
from cvfs.format.tree import Tree
from cvfs.limits import MAX_PATH_BYTES
from cvfs.model import NO_CONTENT, Entry, Record, split
from publisher.repository.link_groups import link_group_number

_NEW_DIRECTORY = 0o040755


def parse_path(text: str) -> bytes:
    """The path in a repository that a user names; slashes before and behind it do not matter. Raises PublishError."""
    path = b"/".join(name for name in os.fsencode(text).split(b"/") if name)
    try:
        check_directory(path)
    except FormatError as error:
        raise PublishError(f"not a path in a repository: {text!r} ({error})") from error
    if len(path) > MAX_PATH_BYTES:
        raise PublishError(f"path over {MAX_PATH_BYTES} bytes: {text[:80]!r}...")
    return path


def upserts(old: Tree, path: bytes, root: Entry, records: Iterator[Record], published_s: int) -> Iterator[Record]:
    """What to put into `old` after all at and below `path` has gone: the new subtree, whose root is `root`, and what
    changes around it. In key order. Raises PublishError if a parent of `path` is no directory."""
    directory, _ = split(path)
    around = [*_parents(old, path, root, published_s), Record(directory, root, NO_CONTENT)]
    orphans = sorted(_orphans(old, path), key=_key)
    if orphans:
        return heapq.merge(sorted([*around, *orphans], key=_key), records, key=_key)
    return chain(sorted(around, key=_key), records)


def removal(old: Tree, path: bytes, published_s: int) -> Iterator[Record]:
    """What to put into `old` after all at and below `path` has gone: what changes around it. In key order.

    Raises PublishError: there is no such path, or it is the root.
    """
    found = old.find_path(path)
    if found is None or not path:
        raise PublishError(f"cannot remove {os.fsdecode(path)!r}: {'it is everything' if found else 'no such path'}")
    above, _ = split(path)
    parent = old.find_path(above)
    assert parent is not None, "found below it"
    changed = replace(
        parent.entry,
        nlink=parent.entry.nlink - found.entry.is_directory,
        mtime_ns=published_s * 1_000_000_000,
    )
    return iter(sorted([Record(split(above)[0], changed, NO_CONTENT), *_orphans(old, path)], key=_key))


def _parents(old: Tree, path: bytes, root: Entry, published_s: int) -> Iterator[Record]:
    """The directories above `path`: those that are missing, and the first above them, which gets a subdirectory."""
    found = old.find_path(path)
    is_new = found is None or not found.entry.is_directory
    while is_new:
        path, _ = split(path)
        directory, name = split(path)
        found = old.find_path(path)
        if found is None:
            made = Entry(name, _NEW_DIRECTORY, root.uid, root.gid, root.mtime_ns, 0, 3, 0, 0, b"", b"", ())
            yield Record(directory, made, NO_CONTENT)
        elif found.entry.is_directory:
            # Its listing changes, and programs look at its mtime to learn that.
            changed = replace(found.entry, nlink=found.entry.nlink + 1, mtime_ns=published_s * 1_000_000_000)
            yield Record(directory, changed, NO_CONTENT)
            is_new = False
        else:
            raise PublishError(f"not a directory in the repository: {os.fsdecode(path)!r}")


def _orphans(old: Tree, path: bytes) -> list[Record]:
    """The names outside of `path` of hard-linked files that also have names in it, as they are without these."""
    inside: dict[int, int] = {}
    nlinks: dict[int, int] = {}
    for record in _subtree(old, path):
        group = record.entry.link_group
        if group:
            inside[group] = inside.get(group, 0) + 1
            nlinks[group] = record.entry.nlink
    torn = {group for group, count in inside.items() if count < nlinks[group]}
    if not torn:
        return []
    return list(
        _regroup(record for record in old.records() if record.entry.link_group in torn and not _is_in(record, path))
    )


def _regroup(names: Iterable[Record]) -> Iterator[Record]:
    groups: dict[int, list[Record]] = {}
    for record in names:
        groups.setdefault(record.entry.link_group, []).append(record)
    for group in groups.values():
        number = link_group_number(group[0].path) if len(group) > 1 else 0
        for record in group:
            yield Record(record.directory, replace(record.entry, nlink=len(group), link_group=number), record.content)


def _subtree(tree: Tree, path: bytes) -> Iterator[Record]:
    """The records at and below `path`."""
    found = tree.find_path(path)
    if found is not None:
        yield found.record
    for record in tree.records(Key(order(path), b"")):
        if not _is_in(record, path):
            return
        yield record


def _is_in(record: Record, path: bytes) -> bool:
    return record.directory == path or record.directory.startswith(path + b"/") or record.path == path


def _key(record: Record) -> Key:
    return key_of(record.directory, record.entry.name)
