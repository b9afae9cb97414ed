"""Directory trees of any kind: descriptions of them (Hypothesis makes more), made real, and read back as facts.

wanted = {b"bin": Directory(), b"bin/x": File(b"...", mode=0o4755), b"bin/y": Link(b"bin/x"), b"x": Symlink(b"bin/x")}
make_tree(path, wanted)
assert snapshot(mount_point) == snapshot(path, count_links=True)
"""

import os
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

Xattrs = Mapping[bytes, bytes]

TIMES_NS = (-(1 << 31) * 1_000_000_000, (1 << 63) - 1)
"""What both ext4 (from 1901) and the repository format (to 2262) keep to the nanosecond."""

_DEFAULT_TIME_NS = 1_700_000_000_123_456_789


@dataclass(frozen=True, kw_only=True)
class Node:
    """What everything but a second name of a file has. An owner of None is whoever makes the tree."""

    mode: int = 0o644
    owner: tuple[int, int] | None = None
    mtime_ns: int = _DEFAULT_TIME_NS
    xattrs: Xattrs = field(default_factory=dict)


@dataclass(frozen=True)
class File(Node):
    """A regular file."""

    data: bytes = b""


@dataclass(frozen=True)
class Directory(Node):
    mode: int = 0o755


@dataclass(frozen=True)
class Symlink(Node):
    target: bytes = b"target"


@dataclass(frozen=True)
class Special(Node):
    """A fifo, socket or device: `kind` is one of stat's S_IF numbers. A socket's path is shorter than 80 bytes."""

    kind: int = stat.S_IFIFO
    rdev: int = 0


@dataclass(frozen=True)
class Link:
    """Another name of the file at `to`."""

    to: bytes


Tree = Mapping[bytes, Node | Link]
"""By path, relative to the tree's root, which is b""; parents that are not named are made."""


def make_tree(path: Path, tree: Tree) -> None:
    """Make `tree` at `path`, which may exist. Owners, devices and some xattrs need root."""
    path.mkdir(parents=True, exist_ok=True)
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in sorted(tree, key=lambda name: (isinstance(tree[name], Link), name)):
            _make_parents(root, name)
            _make_node(root, name, tree[name])
        for name in sorted(tree, reverse=True):
            _set_facts(root, name, tree[name])
    finally:
        os.close(root)


def _make_parents(root: int, name: bytes) -> None:
    parts = name.split(b"/")[:-1]
    for end in range(1, len(parts) + 1):
        try:
            os.mkdir(b"/".join(parts[:end]), dir_fd=root)
        except FileExistsError:
            continue


def _make_node(root: int, name: bytes, node: Node | Link) -> None:
    if isinstance(node, Link):
        os.link(node.to, name, src_dir_fd=root, dst_dir_fd=root, follow_symlinks=False)
    elif isinstance(node, Directory):
        if name:
            try:
                os.mkdir(name, dir_fd=root)
            except FileExistsError:
                return
    elif isinstance(node, Symlink):
        os.symlink(node.target, name, dir_fd=root)
    elif isinstance(node, Special):
        _make_special(root, name, node)
    elif isinstance(node, File):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=root)
        with open(descriptor, "wb") as file:
            file.write(node.data)


def _make_special(root: int, name: bytes, node: Special) -> None:
    if node.kind == stat.S_IFSOCK:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(b"/proc/self/fd/%d/%s" % (root, name))
    else:
        os.mknod(name, node.kind | 0o600, node.rdev, dir_fd=root)


def _set_facts(root: int, name: bytes, node: Node | Link) -> None:
    """Owner before mode (it clears setuid) and capabilities (likewise), times last."""
    if isinstance(node, Link):
        return
    if node.owner is not None:
        os.chown(name or b".", *node.owner, dir_fd=root, follow_symlinks=False)
    if not isinstance(node, Symlink):
        os.chmod(name or b".", node.mode, dir_fd=root)
    for key, value in node.xattrs.items():
        _set_xattr(root, name, key, value)
    os.utime(name or b".", ns=(node.mtime_ns, node.mtime_ns), dir_fd=root, follow_symlinks=False)


def _set_xattr(root: int, name: bytes, key: bytes, value: bytes) -> None:
    directory, _, last = name.rpartition(b"/")
    parent = os.open(directory or b".", os.O_PATH | os.O_DIRECTORY, dir_fd=root)
    try:
        os.setxattr(b"/proc/self/fd/%d/%s" % (parent, last or b"."), key, value, follow_symlinks=False)
    finally:
        os.close(parent)


class Facts(NamedTuple):
    """All that a mount must show of a path. `names` are those of the same file, if it has several."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    nlink: int
    rdev: int
    names: tuple[bytes, ...]
    data: bytes
    target: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]


def snapshot(path: Path, *, count_links: bool = False) -> dict[bytes, Facts]:
    """The facts of every path below `path`, itself as b"". Contents are read whole.

    `count_links`: link counts are what a repository made of this tree has, 2 and the subdirectories, or the names in
    the tree; without it, they are what the kernel says.
    """
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = dict(_walk(root, b""))
        identities: dict[tuple[int, int], list[bytes]] = {}
        for name, status in sorted(found.items()):
            if not stat.S_ISDIR(status.st_mode):
                identities.setdefault((status.st_dev, status.st_ino), []).append(name)
        counts = _subdirectories(found)
        facts = {}
        for name, status in found.items():
            names = tuple(identities.get((status.st_dev, status.st_ino), [name]))
            nlink = status.st_nlink
            if count_links:
                nlink = 2 + counts[name] if stat.S_ISDIR(status.st_mode) else len(names)
            facts[name] = _facts(root, name, status, nlink, names if len(names) > 1 else ())
        return facts
    finally:
        os.close(root)


def _walk(root: int, directory: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    pending = [directory]
    while pending:
        name = pending.pop()
        status = os.stat(name or b".", dir_fd=root, follow_symlinks=False)
        yield name, status
        if stat.S_ISDIR(status.st_mode):
            descriptor = os.open(name or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
            try:
                below = [os.fsencode(entry) for entry in os.listdir(descriptor)]
            finally:
                os.close(descriptor)
            pending.extend(name + b"/" + entry if name else entry for entry in below)


def _subdirectories(found: Mapping[bytes, os.stat_result]) -> dict[bytes, int]:
    counts = dict.fromkeys(found, 0)
    for name, status in found.items():
        if name and stat.S_ISDIR(status.st_mode):
            counts[name.rpartition(b"/")[0]] += 1
    return counts


def _facts(root: int, name: bytes, status: os.stat_result, nlink: int, names: tuple[bytes, ...]) -> Facts:
    mode = status.st_mode
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    is_link, is_file = stat.S_ISLNK(mode), stat.S_ISREG(mode)
    return Facts(
        mode,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_size if is_link or is_file else 0,
        nlink,
        status.st_rdev if is_device else 0,
        names,
        _read(root, name) if is_file else b"",
        os.readlink(name, dir_fd=root) if is_link else b"",
        _xattrs(root, name),
    )


def _read(root: int, name: bytes) -> bytes:
    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=root), "rb") as file:
        return file.read()


def _xattrs(root: int, name: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Those that are published; by a path that is short however long `name` is."""
    directory, _, last = name.rpartition(b"/")
    parent = os.open(directory or b".", os.O_PATH | os.O_DIRECTORY, dir_fd=root)
    try:
        path = b"/proc/self/fd/%d/%s" % (parent, last or b".")
        names = sorted(map(os.fsencode, os.listxattr(path, follow_symlinks=False)))
        wanted = [key for key in names if key.startswith(b"user.") or key == b"security.capability"]
        return tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in wanted)
    finally:
        os.close(parent)


_NAME_BYTES = st.integers(1, 255).filter(lambda byte: byte != ord("/"))
_ODD_NAMES = st.sampled_from(
    [b"a\nb", b"-rf", b" ", b"\xff\xfe", b"\xc3\xa9", b"x" * 255, b"...", b"\x01", b".git", b"a~"]
)


@cache
def names() -> st.SearchStrategy[bytes]:
    """Names of any bytes; often ones that sort next to each other in odd ways."""
    plain = st.sampled_from([b"a", b"b", b"a-", b"a0", b"a\x01", b"ab", b"A"])
    anything = st.lists(_NAME_BYTES, min_size=1, max_size=12).map(bytes).filter(lambda name: name not in (b".", b".."))
    return st.one_of(plain, _ODD_NAMES, anything)


def contents() -> st.SearchStrategy[bytes]:
    """Mostly small; some equal, some empty, some of a few hundred KiB that do not compress."""
    pattern = st.binary(min_size=1, max_size=8)
    repeated = st.builds(lambda data, times: data * times, pattern, st.integers(1, 40_000))
    return st.one_of(st.binary(max_size=200), st.sampled_from([b"", b"same", b"\0" * 5000]), repeated)


def _common(*, is_root: bool) -> dict[str, st.SearchStrategy[object]]:
    owner = st.tuples(st.integers(0, (1 << 32) - 2), st.integers(0, (1 << 32) - 2)) if is_root else st.none()
    key = st.sampled_from([b"user.a", b"user.b", b"user.\xc3\xa9"])
    return {
        "owner": st.one_of(st.none(), owner),
        "mtime_ns": st.integers(*TIMES_NS),
        "xattrs": st.dictionaries(key, st.binary(max_size=40), max_size=2),
    }


@cache
def nodes() -> st.SearchStrategy[Node]:
    """A node of any kind that this user may make."""
    is_root = os.geteuid() == 0
    common = _common(is_root=is_root)
    bare = {**common, "xattrs": st.just({})}  # Linux has no user.* on anything but files and directories.
    modes = st.integers(0, 0o7777) if is_root else st.integers(0, 0o777).map(lambda mode: mode | 0o700)
    fifo = st.just((stat.S_IFIFO, 0))
    devices = st.tuples(
        st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]),
        st.builds(os.makedev, st.integers(0, 4095), st.integers(0, 1048575)),
    )
    kinds = st.one_of(fifo, st.just((stat.S_IFSOCK, 0)), devices) if is_root else fifo
    return st.one_of(
        st.builds(File, data=contents(), mode=modes, **common),
        st.builds(Directory, mode=modes.map(lambda mode: mode | 0o500), **common),
        st.builds(Symlink, target=st.binary(min_size=1, max_size=60).filter(lambda data: b"\0" not in data), **bare),
        st.builds(lambda kind, **rest: Special(kind=kind[0], rdev=kind[1], **rest), kind=kinds, mode=modes, **bare),
    )


@st.composite
def trees(draw: st.DrawFn, max_paths: int = 24) -> dict[bytes, Node | Link]:
    """Trees of up to `max_paths` paths: every kind of file, hard links across directories, odd names."""
    tree: dict[bytes, Node | Link] = {b"": draw(st.builds(Directory, **_common(is_root=os.geteuid() == 0)))}
    directories = [b""]
    for node in draw(st.lists(nodes(), max_size=max_paths)):
        parent = draw(st.sampled_from(directories))
        name = draw(names())
        path = parent + b"/" + name if parent else name
        if path in tree or len(path) > 3000:
            continue
        files = [other for other, there in tree.items() if isinstance(there, File | Symlink | Special)]
        if files and draw(st.integers(0, 7)) == 0:
            tree[path] = Link(draw(st.sampled_from(files)))
            continue
        if isinstance(node, Special) and node.kind == stat.S_IFSOCK and len(path) >= 80:
            node = Special(kind=stat.S_IFIFO)
        tree[path] = node
        if isinstance(node, Directory):
            directories.append(path)
    return tree
