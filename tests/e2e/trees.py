"""Random trees for Hypothesis: descriptions, made on the disk, changed in place."""

import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

_NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"a-b", b"a.b", b"lib", b"\xff", b"\n", b"a" * 255]),
    st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b"..")),
)
_CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda size, seed: bytes([seed]) * size, st.sampled_from([4095, 4096, 70_000, 5 << 20]), st.integers(0, 9)
    ),
)
_XATTRS = st.dictionaries(st.sampled_from([b"user.a", b"user.\xff", b"trusted.z"]), st.binary(max_size=40), max_size=2)


class Thing(NamedTuple):
    """One path of a tree. `kind` is f, d, l, p (fifo), s (socket), c (device) or h: a hard link to an earlier file."""

    path: bytes
    kind: str
    mode: int
    owner: int
    mtime_ns: int
    data: bytes
    xattrs: dict[bytes, bytes]


@st.composite
def things(draw: st.DrawFn) -> Thing:
    return Thing(
        path=b"/".join(draw(st.lists(_NAMES, min_size=1, max_size=4))),
        kind=draw(st.sampled_from("ffffddllhhpsc")),
        mode=draw(st.integers(0, 0o7777)),
        owner=draw(st.sampled_from([0, 1, 65_535, 1 << 31, (1 << 32) - 2])),
        mtime_ns=draw(st.integers(-(1 << 31) * 10**9, (1 << 33) * 10**9)),
        data=draw(_CONTENTS),
        xattrs=draw(_XATTRS),
    )


trees = st.lists(things(), max_size=80)


def make(top: Path, tree: list[Thing]) -> None:
    """Add to what is below `top`, or replace it; what cannot be (a file where a directory is needed) is left out."""
    files = sorted(path for path in top.rglob("*") if path.is_file() and not path.is_symlink())
    for thing in tree:
        path = top / os.fsdecode(thing.path)
        with contextlib.suppress(NotADirectoryError, FileExistsError, IsADirectoryError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if thing.kind != "d":
                _remove(path)
            if thing.kind == "h" and files:
                target = files[len(thing.data) % len(files)]
                os.link(target, path)
                continue
            _make_one(path, thing)
            if thing.kind == "f":
                files.append(path)
            _dress(path, thing)


def remove_some(top: Path, every: int) -> None:
    """Remove every so many paths."""
    for path in sorted(top.rglob("*"))[::every]:
        if path.exists() or path.is_symlink():
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _make_one(path: Path, thing: Thing) -> None:
    if thing.kind == "d":
        path.mkdir(exist_ok=True)
    elif thing.kind == "l":
        os.symlink(thing.data[:100].replace(b"\0", b"0") or b"empty", os.fsencode(path))
    elif thing.kind in "psc":
        kind = {"p": stat.S_IFIFO, "s": stat.S_IFSOCK, "c": stat.S_IFCHR}[thing.kind]
        os.mknod(path, kind | 0o600, os.makedev(4, len(thing.data)) if thing.kind == "c" else 0)
    else:
        path.write_bytes(thing.data)


def _dress(path: Path, thing: Thing) -> None:
    os.lchown(path, thing.owner, (1 << 32) - 2 - thing.owner)
    if thing.kind != "l":
        path.chmod(thing.mode)
        for name, value in thing.xattrs.items() if thing.kind in "fd" else ():
            os.setxattr(path, name, value)
    os.utime(path, ns=(0, thing.mtime_ns), follow_symlinks=False)
