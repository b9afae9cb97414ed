"""Entries: what a reader must refuse beyond the limits in their types (docs/format.md, section 5)."""

import stat
from collections.abc import Sequence
from operator import lt
from typing import Any

from cvfs.errors import FormatError
from cvfs.limits import MAX_NAME_BYTES, MAX_XATTRS_BYTES
from cvfs.model import DIGEST_SIZE, Entry

_TYPE_BITS = stat.S_IFMT(0xFFFF)
_REGULAR, _SYMLINK, _DIRECTORY = stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_PIPES = (stat.S_IFIFO, stat.S_IFSOCK)


def check_entry(entry: Entry) -> None:
    """Raise FormatError unless the fields of `entry` fit its type. Its name is checked with its neighbours'."""
    kind = entry.mode & _TYPE_BITS
    if kind == _REGULAR:
        fits = len(entry.content_id) == DIGEST_SIZE and not (entry.target or entry.rdev)
    elif kind == _DIRECTORY:
        fits = not (entry.content_id or entry.target or entry.size or entry.rdev or entry.link_group)
    elif kind == _SYMLINK:
        fits = 0 < len(entry.target) == entry.size and b"\0" not in entry.target
        fits = fits and not (entry.content_id or entry.rdev)
    else:
        fits = kind in _DEVICES or (kind in _PIPES and not entry.rdev)
        fits = fits and not (entry.content_id or entry.target or entry.size)
    if not fits:
        raise FormatError(f"entry {entry.name!r}: its fields do not fit a file of mode {entry.mode:o}")
    if entry.xattrs:
        _check_xattrs(entry)


def _check_xattrs(entry: Entry) -> None:
    names = [name for name, _ in entry.xattrs]
    if not ascending(names) or b"\0" in b"".join(names):
        raise FormatError(f"entry {entry.name!r}: its extended attributes are not in order")
    if sum(len(name) + len(value) for name, value in entry.xattrs) > MAX_XATTRS_BYTES:
        raise FormatError(f"entry {entry.name!r}: its extended attributes are over the limit")


def ascending(values: Sequence[Any]) -> bool:
    """Whether each value is less than the next."""
    return all(map(lt, values, values[1:]))


def check_names(names: Sequence[bytes]) -> None:
    """Raise FormatError unless each can be the name of a path: no slash, no NUL, not empty, "." or ".."."""
    joined = b"".join(names)
    if b"/" in joined or b"\0" in joined or not all(names) or b"." in names or b".." in names:
        raise FormatError("a name that no path can have")


def check_directory(directory: bytes) -> None:
    """Raise FormatError unless `directory` is b"" or names joined by single slashes."""
    if directory:
        names = directory.split(b"/")
        check_names(names)
        if len(directory) > MAX_NAME_BYTES and max(map(len, names)) > MAX_NAME_BYTES:
            raise FormatError("a name over the limit")
