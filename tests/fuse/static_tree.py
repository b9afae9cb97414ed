"""A tiny file system that answers each request from the request alone: what is recorded, and replayed.

Its answers depend on nothing but its three switches, so bytes that a real kernel accepted once can be compared with
what the encoders make today.
"""

import errno
import stat
from dataclasses import dataclass, field

from cvfs.fuse.protocol import codes, negotiation, replies, requests
from cvfs.fuse.protocol.bodies import Request
from cvfs.fuse.protocol.codes import Opcode

VALIDITY = replies.encode_validity(86400.5, 3600)
PATTERN = bytes(range(256))


@dataclass(frozen=True)
class Node:
    mode: int
    content: bytes = b""
    children: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    mtime_ns: int = 1_600_000_000_123_456_789


def nodes() -> dict[int, Node]:
    """Node numbers are as large as real ones, but for the root."""
    top = 0xF000_0000_0000_0000
    many = {b"entry-%03d" % number: top + 100 + number for number in range(150)}
    children = {
        b"hello": top + 1,
        b"big": top + 2,
        b"link": top + 3,
        b"many": top + 4,
        b"pipe": top + 5,
        b"old": top + 6,
    }
    tree = {
        codes.ROOT_NODE: Node(stat.S_IFDIR | 0o755, children=children),
        top + 1: Node(stat.S_IFREG | 0o644, b"hello, kernel\n", xattrs={b"user.one": b"1", b"user.two": b"22" * 9}),
        top + 2: Node(stat.S_IFREG | 0o755, PATTERN * 6000),
        top + 3: Node(stat.S_IFLNK | 0o777, b"many/entry-007"),
        top + 4: Node(stat.S_IFDIR | 0o755, children=many),
        top + 5: Node(stat.S_IFIFO | 0o600),
        top + 6: Node(stat.S_IFREG | 0o600, b"before 1970\n", mtime_ns=-1_500_000_001),
    }
    return tree | {number: Node(stat.S_IFREG | 0o444, name) for name, number in many.items()}


class StaticTree:
    """`zero_message`: OPEN, OPENDIR, FLUSH, STATX are answered ENOSYS, as in the product; else in full."""

    def __init__(self, *, zero_message: bool) -> None:
        self._zero_message = zero_message
        self._nodes = nodes()
        self.session: negotiation.Session | None = None

    def answer(self, data: bytes) -> bytes | None:
        """The whole reply to a whole request; None if there is none (yet)."""
        request = requests.decode_request(data)
        if request.opcode in codes.WRITING_OPCODES:
            return replies.encode_error(request.unique, errno.EROFS)
        if self._zero_message and request.opcode in (Opcode.OPEN, Opcode.OPENDIR, Opcode.FLUSH, Opcode.STATX):
            return replies.encode_error(request.unique, errno.ENOSYS)
        handler = getattr(self, "_" + codes.opcode_name(request.opcode).lower(), None)
        return handler(request) if handler else replies.encode_error(request.unique, errno.ENOSYS)

    def attr(self, number: int) -> replies.Attr:
        node = self._nodes[number]
        links = 2 if stat.S_ISDIR(node.mode) else 1
        size, owner = len(node.content), {"uid": 0, "gid": 0, "rdev": 0}
        return replies.encode_attr(
            ino=number,
            mode=node.mode,
            nlink=links,
            size=size,
            blocks=-(-size // 512),
            block_size=4096,
            **owner,
            mtime_ns=node.mtime_ns,
        )

    def _init(self, request: Request) -> bytes | None:
        self.session = negotiation.negotiate(negotiation.decode_init(request.data), negotiation.Wishes())
        return negotiation.encode_init(request.unique, self.session) if self.session else None

    def _lookup(self, request: Request) -> bytes | None:
        name = requests.decode_lookup(request.data)
        if name == b"slow":
            return None
        child = self._nodes[request.node].children.get(name)
        if child is None:
            return replies.encode_no_entry(request.unique, VALIDITY)
        return replies.encode_entry(request.unique, child, self.attr(child), VALIDITY)

    def _interrupt(self, request: Request) -> bytes:
        return replies.encode_error(requests.decode_interrupt(request.data), errno.EINTR)

    def _forget(self, request: Request) -> None:
        requests.decode_forget(request.data)

    def _batch_forget(self, request: Request) -> None:
        requests.decode_batch_forget(request.data)

    def _getattr(self, request: Request) -> bytes:
        requests.decode_getattr(request.data)
        return replies.encode_attributes(request.unique, self.attr(request.node), 3600)

    def _statx(self, request: Request) -> bytes:
        requests.decode_statx(request.data)
        return replies.encode_statx(request.unique, self.attr(request.node), 3600)

    def _readlink(self, request: Request) -> bytes:
        requests.decode_nothing(request.data)
        return replies.encode_reply(request.unique, self._nodes[request.node].content)

    def _open(self, request: Request) -> bytes:
        requests.decode_open(request.data)
        return replies.encode_open(request.unique, 99, codes.OpenFlag.KEEP_CACHE)

    def _opendir(self, request: Request) -> bytes:
        requests.decode_open(request.data)
        return replies.encode_open(request.unique, 98, codes.OpenFlag.CACHE_DIR | codes.OpenFlag.KEEP_CACHE)

    def _read(self, request: Request) -> bytes:
        wanted = requests.decode_read(request.data)
        content = memoryview(self._nodes[request.node].content)
        return b"".join(replies.encode_read(request.unique, content[wanted.offset : wanted.offset + wanted.size]))

    def _readdir(self, request: Request) -> bytes:
        wanted = requests.decode_read(request.data)
        listing = list(enumerate(self._nodes[request.node].children.items(), 1))[wanted.offset :]
        records = [replies.encode_dirent(name, child, self._kind(child), after) for after, (name, child) in listing]
        return replies.encode_records(request.unique, records, wanted.size)

    def _readdirplus(self, request: Request) -> bytes:
        wanted = requests.decode_read(request.data)
        listing = list(enumerate(self._nodes[request.node].children.items(), 1))[wanted.offset :]
        records = [
            replies.encode_direntplus(name, child, self._kind(child), after, self.attr(child), VALIDITY)
            for after, (name, child) in listing
        ]
        return replies.encode_records(request.unique, records, wanted.size)

    def _kind(self, number: int) -> int:
        return self._nodes[number].mode >> 12

    def _flush(self, request: Request) -> bytes:
        requests.decode_flush(request.data)
        return replies.encode_reply(request.unique)

    def _release(self, request: Request) -> bytes:
        requests.decode_release(request.data)
        return replies.encode_reply(request.unique)

    _releasedir = _release

    def _fsync(self, request: Request) -> bytes:
        requests.decode_fsync(request.data)
        return replies.encode_reply(request.unique)

    _fsyncdir = _fsync

    def _statfs(self, request: Request) -> bytes:
        requests.decode_nothing(request.data)
        statfs = replies.Statfs(1000, 10, 200, 20, 1 << 20, 4096, 255)
        return replies.encode_statfs(request.unique, statfs)

    def _getxattr(self, request: Request) -> bytes:
        wanted = requests.decode_getxattr(request.data)
        value = self._nodes[request.node].xattrs.get(wanted.name)
        if value is None:
            return replies.encode_error(request.unique, errno.ENODATA)
        return replies.encode_xattr(request.unique, value, wanted.size)

    def _listxattr(self, request: Request) -> bytes:
        room = requests.decode_listxattr(request.data)
        return replies.encode_xattr(request.unique, replies.join_names(self._nodes[request.node].xattrs), room)

    def _lseek(self, request: Request) -> bytes:
        wanted = requests.decode_lseek(request.data)
        size = len(self._nodes[request.node].content)
        if not 0 <= wanted.offset < size:
            return replies.encode_error(request.unique, errno.ENXIO)
        return replies.encode_lseek(request.unique, size if wanted.whence == 4 else wanted.offset)

    def _ioctl(self, request: Request) -> bytes:
        requests.decode_ioctl(request.data)
        return replies.encode_error(request.unique, errno.ENOTTY)
