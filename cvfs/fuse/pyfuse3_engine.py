"""The portable engine: libfuse, through pyfuse3. One mount a process, as libfuse's bindings have it."""

import contextlib
import errno
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio

from cvfs.errors import MountError, PathError
from cvfs.filesystem import BLOCK_BYTES, Node, View
from cvfs.fuse.errno_table import refusal
from cvfs.fuse.invalidate import Changes
from cvfs.fuse.options import FOREVER_S, MountOptions, escaped
from cvfs.fuse.protocol.negotiation import MAX_BACKGROUND
from cvfs.fuse.pyfuse3_reading import Trio
from cvfs.missing import Missing

P = ParamSpec("P")
T = TypeVar("T")

_MAX_TASKS = 4096
"""Requests under way at once. Those that wait for the network must not keep those that need not from being taken."""

_MAX_BACKGROUND = "/sys/fs/fuse/connections/{}/max_background"
"""Of the connection with this number; pyfuse3 has no option for it."""


async def serve(
    filesystem: View, directory: Path, options: MountOptions, started: Callable[[], None] = lambda: None
) -> None:
    """Mount on `directory` and serve until it is unmounted; `started()` is called once the kernel has been answered.

    Raises MountError if the kernel, or fusermount3, refuses. Cancelled: unmounted.
    """
    handlers = Handlers(filesystem, options.request_deadline_s)
    pyfuse3.trio = Trio(lambda: handlers.under_way)  # type: ignore[attr-defined]
    try:
        pyfuse3.init(handlers, str(directory), set(fuse_options(options)))
    except RuntimeError as error:
        raise MountError(f"cannot mount on {directory}: {error} (is /dev/fuse there, and fuse3 installed?)") from error
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_announce, directory, started)
            await pyfuse3.main(max_tasks=_MAX_TASKS)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


async def invalidate(changes: Changes) -> None:
    """Tell the kernel what a switch of the revision has changed."""
    await trio.to_thread.run_sync(_invalidate, changes, abandon_on_cancel=True)


def _invalidate(changes: Changes) -> None:
    """libfuse waits for requests that are under way, so not in the loop."""
    for inode in changes.directories:
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_inode(inode)
    for parent, name in changes.names:
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_entry(parent, name)


def fuse_options(options: MountOptions) -> Sequence[str]:
    """What libfuse calls the options of a mount."""
    chosen = ["ro", "default_permissions", "subtype=cvfs", f"fsname={escaped(options.source)}"]
    chosen.append("suid" if options.suid else "nosuid")
    chosen.append("dev" if options.dev else "nodev")
    chosen.append("exec" if options.executable else "noexec")
    return [*chosen, "allow_other"] if options.allow_other else chosen


async def _announce(directory: Path, started: Callable[[], None]) -> None:
    """The first stat comes back when the kernel has its answer to INIT."""
    await trio.to_thread.run_sync(_set_up, directory, abandon_on_cancel=True)
    started()


def _set_up(directory: Path) -> None:
    number = os.minor(directory.stat().st_dev)
    with contextlib.suppress(OSError):  # it takes root, and /sys/fs/fuse/connections mounted
        Path(_MAX_BACKGROUND.format(number)).write_text(str(MAX_BACKGROUND), encoding="ascii")


def _answered(
    handler: Callable[Concatenate["Handlers", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Handlers", P], Coroutine[Any, Any, T]]:
    """A handler that answers every error with an errno: pyfuse3 ends the mount for any other exception."""

    async def answer(self: "Handlers", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001
            raise pyfuse3.FUSEError(refusal(handler.__name__, error)) from None

    answer.__name__ = handler.__name__
    return answer


class Handlers(pyfuse3.Operations):
    """The kernel's requests, answered by a `View`. File and directory handles are inode numbers."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, filesystem: View, request_deadline_s: float) -> None:
        super().__init__()
        self._filesystem = filesystem
        self._deadline_s = request_deadline_s
        self.under_way = 0
        """The number of requests that wait for anything."""

    async def _bring(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except Missing:
            with self._waiting():
                return await self._filesystem.bring(question)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self.under_way += 1
        try:
            with trio.fail_after(self._deadline_s):
                yield
        finally:
            self.under_way -= 1

    @_answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        try:
            return attributes(await self._bring(lambda: self._filesystem.lookup_nowait(parent_inode, name)))
        except Exception as error:
            if isinstance(error, PathError) and error.errno == errno.ENOENT:
                return _nothing(error.lasting_s)
            raise

    @_answered
    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return attributes(await self._bring(lambda: self._filesystem.getattr_nowait(inode)))

    @_answered
    async def readlink(self, inode: int, ctx: Any) -> bytes:
        return await self._bring(lambda: self._filesystem.readlink_nowait(inode))

    @_answered
    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PathError(errno.EROFS)
        await self._bring(lambda: self._filesystem.file_nowait(inode))
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @_answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        file = await self._bring(lambda: self._filesystem.file_nowait(fh))
        parts = None
        with contextlib.suppress(Missing):
            parts = file.read_parts_nowait(off, size)
        if parts is None:
            with self._waiting():
                parts = await file.read_parts(off, size)
        return b"".join(parts)

    async def release(self, fh: int) -> None:
        pass

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    @_answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        items = await self._bring(lambda: self._filesystem.listing_nowait(fh, start_id))
        while items:
            for item in items:
                if not pyfuse3.readdir_reply(token, item.name, attributes(item.node), item.cookie):
                    return
            last = items[-1].cookie
            items = await self._bring(lambda: self._filesystem.listing_nowait(fh, last))  # noqa: B023

    async def releasedir(self, fh: int) -> None:
        pass

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        value = await self._bring(lambda: self._filesystem.xattr_nowait(inode, name))
        if value is None:
            raise PathError(errno.ENODATA)
        return value

    @_answered
    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        return [name for name, _ in await self._bring(lambda: self._filesystem.xattrs_nowait(inode))]

    @_answered
    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        space = self._filesystem.space()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_BYTES
        data.f_blocks = -(-space.size_bytes // BLOCK_BYTES)
        data.f_files = space.entries
        data.f_bfree = data.f_bavail = data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Numbers are facts, not state: there is nothing to forget."""


def attributes(node: Node) -> pyfuse3.EntryAttributes:
    """What the kernel is told of an inode."""
    entry = node.entry
    result = pyfuse3.EntryAttributes()
    result.st_ino = node.inode
    result.entry_timeout = result.attr_timeout = FOREVER_S if node.lasting_s is None else node.lasting_s
    result.st_mode = entry.mode
    result.st_nlink = entry.nlink
    result.st_uid = entry.uid
    result.st_gid = entry.gid
    result.st_rdev = entry.rdev
    result.st_size = node.size
    result.st_blksize = BLOCK_BYTES
    result.st_blocks = node.blocks
    result.st_atime_ns = result.st_ctime_ns = result.st_mtime_ns = entry.mtime_ns
    return result


def _nothing(lasting_s: float | None) -> pyfuse3.EntryAttributes:
    """The answer to a lookup of what is not there: the kernel remembers it as it does an entry."""
    result = pyfuse3.EntryAttributes()
    result.st_ino = 0
    result.entry_timeout = FOREVER_S if lasting_s is None else lasting_s
    return result
