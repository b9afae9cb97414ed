"""A tree with one of everything that a file system can hold, and a look at any tree that misses nothing."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.e2e.host import Store

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

NAMES = [
    *(bytes([value]) for value in range(1, 256) if value not in b"./"),
    *(b"n" * 255, b"\xff" * 255, b"...", b"..x", b" leading", b"new\nline", b"-rf", b"a\\b", b"con\x1b[1m"),
    *("é".encode(), b"e\xcc\x81", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbfbom", b"tab\t", b"$(x)"),
]
"""Also not UTF-8, and such as only differ in normalisation or case."""

MODES = [special | usual for special in range(0, 0o10000, 0o1000) for usual in (0, 0o007, 0o111, 0o644, 0o755, 0o777)]
OWNERS = [0, 1, 1000, 65_534, 65_535, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 2]

TIMES_NS = [
    *(0, 1, -1, 999_999_999, -999_999_999, 1_000_000_001, 1_700_000_000_123_456_789),
    *(at * 1_000_000_000 + 7 for at in (-(1 << 31) - 1, -(1 << 31), (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 32) + 1)),
    *((1 << 33) * 1_000_000_000 + 987_654_321, -(1 << 33) * 1_000_000_000 + 5, (1 << 63) - 1, -(1 << 63) + 1),
]
"""1677 to 2262: all that 64 bits of nanoseconds hold. Only some file systems can have them: tmpfs can."""

SIZES = [0, 1, 4095, 4096, 4097, 128 * KIB, MIB + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 5]

XATTRS = {
    b"user.text": b"value",
    b"user.empty": b"",
    b"user.binary": bytes(range(256)),
    b"user." + b"n" * 250: b"longest name",
    b"user.\xff\xfe": b"name that is not UTF-8",
    b"trusted.one": b"\x00root only",
}
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_bind_service+ep, as setcap(8) writes it."""

SPARSE_BYTES = 5 * GIB
SPARSE_DATA = {0: b"begin", 4 * GIB - 3: b"across the border", 4 * GIB + 123_456_789: b"beyond" * 1000}
SPARSE_END = b"end"

DEEP = b"/".join([b"deep", *(b"%02d" % n + b"d" * 245 for n in range(15)), b"e" * 230, b"file"])
"""A path of 3,961 bytes."""


@dataclass(frozen=True)
class Zoo:
    """The trees and the store that they were published to: `main` at the root, `timed` (on tmpfs) as `times`."""

    main: Path
    timed: Path
    store: Store


def make_zoo(top: Path, timed: Path) -> Zoo:
    main = top / "tree"
    main.mkdir()
    for make in _MAKERS:
        directory = main / make.__name__.removeprefix("_make_")
        directory.mkdir()
        make(directory)
    os.chmod(main, 0o755)
    _make_times(timed)
    store = Store(top / "store")
    store.publish(main)
    store.publish(timed, "--at", "times")
    return Zoo(main, timed, store)


def content(size: int) -> bytes:
    """`size` bytes that do not compress, nor repeat within a megabyte."""
    block = hashlib.shake_128(b"%d" % size).digest(min(size, MIB))
    return (block * (size // MIB + 1))[:size]


def _make_names(top: Path) -> None:
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(top) + b"/" + name)).write_bytes(b"content of " + name)


def _make_modes(top: Path) -> None:
    for mode in MODES:
        path = top / f"{mode:04o}"
        path.write_text("#!/bin/sh\nid -u\n")
        path.chmod(mode)
        directory = top / f"d{mode:04o}"
        directory.mkdir()
        directory.chmod(mode)


def _make_owners(top: Path) -> None:
    for owner in OWNERS:
        path = top / str(owner)
        path.touch()
        os.chown(path, owner, OWNERS[-1] - owner)


def _make_times(top: Path) -> None:
    for mtime_ns in TIMES_NS:
        path = top / str(mtime_ns)
        path.touch()
        os.utime(path, ns=(0, mtime_ns))
    link = top / "link"
    link.symlink_to("0")
    os.utime(link, ns=(0, -5), follow_symlinks=False)
    (top / "directory").mkdir()
    os.utime(top / "directory", ns=(0, 1 << 62))
    top.chmod(0o755)


def _make_links(top: Path) -> None:
    targets = {"dangling": b"nowhere", "long": b"../" * 1361 + b"x" * 12, "self": b"self", "one": b"two", "two": b"one"}
    targets |= {
        "absolute": b"/etc/hostname",
        "relative": b"../sizes/1",
        "bytes": b"\xff\n\xfe",
        "root": b"/",
        "up": b"..",
    }
    for name, target in targets.items():
        os.symlink(target, os.fsencode(top / name))
    os.lchown(top / "dangling", 12, 34)


def _make_hard(top: Path) -> None:
    for name in ("a", "b", "c"):
        (top / name).mkdir()
    (top / "a/file").write_text("one inode")
    os.link(top / "a/file", top / "b/file")
    os.link(top / "a/file", top / "c/another name")
    (top / "a/empty").touch()
    os.link(top / "a/empty", top / "b/empty")
    os.symlink("target", top / "a/symlink")
    os.link(top / "a/symlink", top / "c/symlink", follow_symlinks=False)
    os.mkfifo(top / "a/fifo")
    os.link(top / "a/fifo", top / "b/fifo")
    (top / "a/large").write_bytes(content(5 * MIB))
    os.link(top / "a/large", top / "c/large")
    (top / "a/outside").write_text("its other name is not published")
    os.link(top / "a/outside", top.parent.parent / "outside")


def _make_empty(top: Path) -> None:
    (top / "file").touch()
    (top / "directory").mkdir()
    (top / "nested/empty").mkdir(parents=True)


def _make_xattrs(top: Path) -> None:
    (top / "file").write_text("with attributes")
    (top / "bare").write_text("without")
    (top / "directory").mkdir()
    for path in (top / "file", top / "directory"):
        for name, value in XATTRS.items():
            os.setxattr(path, name, value)
    os.symlink("nowhere", top / "link")
    os.setxattr(top / "link", b"trusted.of-a-link", b"yes", follow_symlinks=False)
    (top / "capable").write_text("capable")
    (top / "capable").chmod(0o755)
    os.setxattr(top / "capable", b"security.capability", CAPABILITY)


def _make_special(top: Path) -> None:
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "socket", stat.S_IFSOCK | 0o755)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "char", stat.S_IFCHR | 0o600, os.makedev(4095, (1 << 20) - 1))
    os.mknod(top / "block", stat.S_IFBLK | 0o660, os.makedev(259, 77_777))


def _make_sizes(top: Path) -> None:
    for size in SIZES:
        (top / str(size)).write_bytes(content(size))
    (top / "same").write_bytes(content(9 * MIB + 5))


def _make_sparse(top: Path) -> None:
    with open(top / "file", "wb") as file:
        for offset, data in (SPARSE_DATA | {SPARSE_BYTES - len(SPARSE_END): SPARSE_END}).items():
            file.seek(offset)
            file.write(data)
    with open(top / "hole", "wb") as file:
        file.truncate(64 * MIB)


def _make_deep(top: Path) -> None:
    here = os.open(top, os.O_RDONLY)
    for name in DEEP.split(b"/")[1:-1]:
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with open(os.open(b"file", os.O_CREAT | os.O_WRONLY, dir_fd=here), "wb") as file:
        file.write(b"deep down")
    os.close(here)


_MAKERS: list[Callable[[Path], None]] = [
    *(_make_names, _make_modes, _make_owners, _make_links, _make_hard, _make_empty, _make_xattrs, _make_special),
    *(_make_sizes, _make_sparse, _make_deep),
]


class Facts(NamedTuple):
    """All there is to know of a path but for its name and its inode number."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    rdev: int
    nlink: int
    content: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]


class Look(NamedTuple):
    """What a tree holds: the facts of each path, and which paths are names of one file."""

    facts: dict[bytes, Facts]
    links: set[frozenset[bytes]]


def look(top: Path) -> Look:
    """A look at everything below `top`, and `top` itself as b"". Contents are given by their hash.

    A link count is that of the names below `top`; the size of a directory is left out.
    """
    facts: dict[bytes, Facts] = {}
    names: dict[int, list[bytes]] = {}
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        facts[b""] = _facts(descriptor, b".", os.fstat(descriptor))
        for path, status, fact in _walk(descriptor, b""):
            facts[path] = fact
            if not stat.S_ISDIR(status.st_mode):
                names.setdefault(status.st_ino, []).append(path)
    finally:
        os.close(descriptor)
    for paths in names.values():
        for path in paths:
            facts[path] = facts[path]._replace(nlink=len(paths))
    return Look(facts, {frozenset(paths) for paths in names.values() if len(paths) > 1})


def _walk(directory: int, prefix: bytes) -> Iterator[tuple[bytes, os.stat_result, Facts]]:
    """By descriptors, so that a path may be longer than a system call allows."""
    for text in sorted(os.listdir(directory), key=os.fsencode):
        name = os.fsencode(text)
        path = prefix + name
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        yield path, status, _facts(directory, name, status)
        if stat.S_ISDIR(status.st_mode):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                yield from _walk(below, path + b"/")
            finally:
                os.close(below)


def _facts(directory: int, name: bytes, status: os.stat_result) -> Facts:
    mode = status.st_mode
    data = b""
    if stat.S_ISLNK(mode):
        data = os.readlink(name, dir_fd=directory)
    elif stat.S_ISREG(mode):
        data = hash_file(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory))
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    return Facts(
        mode=mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=0 if stat.S_ISDIR(mode) else status.st_size,
        rdev=status.st_rdev if is_device else 0,
        nlink=status.st_nlink,
        content=data,
        xattrs=_xattrs(b"/proc/self/fd/%d/%s" % (directory, name)),
    )


def hash_file(descriptor: int) -> bytes:
    """A hash of a file's bytes. Of one larger than a gigabyte only its size counts: it has tests of its own."""
    with open(descriptor, "rb", buffering=0) as file:
        if os.fstat(descriptor).st_size > GIB:
            return b"large"
        return hashlib.file_digest(file, "sha256").digest()


def _xattrs(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Those that are published: not what belongs to the host (access lists, security labels)."""
    listed = map(os.fsencode, os.listxattr(path, follow_symlinks=False))
    names = [n for n in listed if n.startswith((b"user.", b"trusted.")) or n == b"security.capability"]
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(names))
