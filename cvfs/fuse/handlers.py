"""The kernel's requests, answered by a `View`: what a request asks, and the bytes of its reply.

`answer_nowait` answers from memory, in microseconds; `answer` waits. OPEN, OPENDIR and FLUSH are answered ENOSYS, once
in the life of a mount: from then on the kernel opens files and reads cached pages without a message.
"""

import errno
import os
from collections.abc import Callable
from typing import Final

from cvfs.errors import PathError
from cvfs.filesystem import BLOCK_BYTES, Item, Node, View
from cvfs.fuse.errno_table import errno_of
from cvfs.fuse.options import FOREVER_S
from cvfs.fuse.protocol import replies, requests
from cvfs.fuse.protocol.bodies import Read, Request
from cvfs.fuse.protocol.codes import WRITING_OPCODES, Opcode
from cvfs.fuse.protocol.replies import Attr, Statfs, Validity
from cvfs.missing import Missing

Reply = bytes | tuple[bytes | memoryview, ...]
"""What one write(2) or one writev(2) says."""

_FOREVER: Final = replies.encode_validity(FOREVER_S, FOREVER_S)
_DOTS: Final = (b".", b"..")


class _DataMissing(Exception):
    """The bytes of a READ are not in memory."""


class Handlers:
    """Stateless but for what the `View` has in memory: any process may answer any request."""

    def __init__(self, filesystem: View) -> None:
        self._filesystem = filesystem
        self._table: dict[int, Callable[[Request], Reply]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.READLINK: self._readlink,
            Opcode.READ: self._read,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.STATFS: self._statfs,
            Opcode.LSEEK: self._lseek,
            Opcode.RELEASE: _done,
            Opcode.RELEASEDIR: _done,
            Opcode.DESTROY: _done,
        }

    def answer_nowait(self, request: Request) -> Reply | None:
        """The reply; None if it takes a wait. Raises what the `View` does, and FormatError."""
        handler = self._table.get(request.opcode)
        if handler is None:
            refusal = errno.EROFS if request.opcode in WRITING_OPCODES else errno.ENOSYS
            return replies.encode_error(request.unique, refusal)
        try:
            return handler(request)
        except (Missing, _DataMissing):
            return None

    async def answer(self, request: Request) -> Reply:
        """The reply, however long it takes. Raises as `answer_nowait` does; cancelled: nothing happened."""
        if request.opcode == Opcode.READ:
            read = requests.decode_read(request.data)
            file = await self._filesystem.bring(lambda: self._filesystem.file_nowait(request.node))
            return replies.encode_read(request.unique, *await file.read_parts(read.offset, read.size))
        handler = self._table[request.opcode]
        return await self._filesystem.bring(lambda: handler(request))

    def make_ready(self, answered: Request) -> None:
        """A READ was answered: the next one may be made ready while its caller is busy. Raises as `answer_nowait`."""
        self._filesystem.make_ready(answered.node)

    def _lookup(self, request: Request) -> Reply:
        try:
            node = self._filesystem.lookup_nowait(request.node, requests.decode_lookup(request.data))
        except PathError as error:
            if errno_of(error) != errno.ENOENT:
                raise
            return replies.encode_no_entry(request.unique, _validity(error.lasting_s))
        return replies.encode_entry(request.unique, node.inode, encode_node(node), _validity(node.lasting_s))

    def _getattr(self, request: Request) -> Reply:
        node = self._filesystem.getattr_nowait(request.node)
        lasting_s = FOREVER_S if node.lasting_s is None else int(node.lasting_s)
        return replies.encode_attributes(request.unique, encode_node(node), lasting_s)

    def _readlink(self, request: Request) -> Reply:
        return replies.encode_reply(request.unique, self._filesystem.readlink_nowait(request.node))

    def _read(self, request: Request) -> Reply:
        read = requests.decode_read(request.data)
        parts = self._filesystem.read_parts_nowait(request.node, read.offset, read.size)
        if parts is None:
            raise _DataMissing
        return replies.encode_read(request.unique, *parts)

    def _readdir(self, request: Request) -> Reply:
        read = requests.decode_read(request.data)
        return self._listing(request, read, replies.DIRENT_BYTES, _dirent)

    def _readdirplus(self, request: Request) -> Reply:
        read = requests.decode_read(request.data)
        return self._listing(request, read, replies.DIRENTPLUS_BYTES, _direntplus)

    def _listing(self, request: Request, read: Read, record_bytes: int, encode: Callable[[Item], bytes]) -> Reply:
        """As much of one listing as there is room for; a run of it never spans two pages."""
        limit = read.size // (record_bytes + 1) + 1
        items = self._filesystem.listing_nowait(request.node, read.offset, limit)
        if items and read.offset < len(_DOTS):
            items += self._filesystem.listing_nowait(request.node, items[-1].cookie, limit)
        return replies.encode_records(request.unique, map(encode, items), read.size)

    def _getxattr(self, request: Request) -> Reply:
        asked = requests.decode_getxattr(request.data)
        value = self._filesystem.xattr_nowait(request.node, asked.name)
        if value is None:
            return replies.encode_error(request.unique, errno.ENODATA)
        return replies.encode_xattr(request.unique, value, asked.size)

    def _listxattr(self, request: Request) -> Reply:
        room = requests.decode_listxattr(request.data)
        names = replies.join_names(name for name, _ in self._filesystem.xattrs_nowait(request.node))
        return replies.encode_xattr(request.unique, names, room)

    def _statfs(self, request: Request) -> Reply:
        space = self._filesystem.space(request.node)
        blocks = -(-space.size_bytes // BLOCK_BYTES)
        return replies.encode_statfs(request.unique, Statfs(blocks, 0, space.entries, 0, BLOCK_BYTES, BLOCK_BYTES, 255))

    def _lseek(self, request: Request) -> Reply:
        """Every byte is data, as far as anyone needs to know, and behind the end is the one hole."""
        asked = requests.decode_lseek(request.data)
        node = self._filesystem.getattr_nowait(request.node)
        if not 0 <= asked.offset < node.size:
            raise PathError(errno.ENXIO)
        return replies.encode_lseek(request.unique, node.size if asked.whence == os.SEEK_HOLE else asked.offset)


def _validity(lasting_s: float | None) -> Validity:
    return _FOREVER if lasting_s is None else replies.encode_validity(lasting_s, lasting_s)


def _done(request: Request) -> Reply:
    return replies.encode_reply(request.unique)


def encode_node(node: Node) -> Attr:
    """What the kernel is told of an inode."""
    entry = node.entry
    mode, uid, gid, rdev = entry.mode, entry.uid, entry.gid, entry.rdev
    blocks, mtime_ns = node.blocks, entry.mtime_ns
    return replies.encode_attr(node.inode, mode, entry.nlink, uid, gid, rdev, node.size, blocks, BLOCK_BYTES, mtime_ns)


def _dirent(item: Item) -> bytes:
    return replies.encode_dirent(item.name, item.node.inode, item.node.entry.mode >> 12, item.cookie)


def _direntplus(item: Item) -> bytes:
    """Of `.` and `..` the kernel takes the name alone; with node 0 it need not be told more."""
    name, node = item.name, item.node
    number = 0 if name in _DOTS else node.inode
    validity = _FOREVER if node.lasting_s is None else _validity(node.lasting_s)
    return replies.encode_direntplus(name, number, node.entry.mode >> 12, item.cookie, encode_node(node), validity)
