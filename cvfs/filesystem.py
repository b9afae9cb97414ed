"""The file system core: inodes, names, attributes and bytes, for any engine and for none. It knows nothing of FUSE.

Every question has a `nowait` form, which answers from memory or raises PageMissing; `bring` waits for its answer.
"""

import errno
import stat
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from cvfs import about
from cvfs.appearance import Appearance
from cvfs.cache.memory import Memory
from cvfs.errors import PathError, StaleInodeError
from cvfs.fetcher import NumberLost
from cvfs.file import File, Parts
from cvfs.following import Following
from cvfs.format.locations import WireContent
from cvfs.format.tree.lookup import Found
from cvfs.inodes import ROOT_INODE
from cvfs.model import Entry, split
from cvfs.repository import Repository
from cvfs.seen import Seen

T = TypeVar("T")

BLOCK_BYTES = 4096
DIRECTORY_BYTES = 4096
"""What stat(2) says of a directory's size: one block, as on ext4."""

_DIRECTORIES = 16_384
_FILE_LOCATIONS = 8192
_RUNS = 4096
_DOTS = 2
_RUN_BITS = 32
_ALL = 1 << _RUN_BITS

END = (1 << 62) - 1
"""The cookie behind the last line of a listing."""

_DOT = Entry(b".", stat.S_IFDIR | 0o755, 0, 0, 0, 0, 2, 0, 0, b"", b"", ())


AS_PUBLISHED = Appearance()


class Node(msgspec.Struct, frozen=True, gc=False):
    """An inode: what stat(2) needs beside the entry. `blocks` are of 512 bytes and count what is stored, not holes.

    `lasting_s` is for how long this, and its name, may be believed; None: as long as the revision is the same.
    """

    inode: int
    entry: Entry
    size: int
    blocks: int
    lasting_s: float | None = None


class Item(msgspec.Struct, frozen=True, gc=False):
    """One line of a listing; `cookie` continues the listing behind it."""

    name: bytes
    node: Node
    cookie: int


class TreeSize(NamedTuple):
    """The size of a repository: bytes of its regular files, and number of its entries."""

    size_bytes: int
    entries: int


class View(Protocol):
    """What an engine shows, by inode number: one repository (`FileSystem`), or many (`Forest`).

    The methods are those of `FileSystem`. Those named `x_nowait` may raise Missing, and `bring` waits for their answer.
    """

    async def bring(self, question: Callable[[], T]) -> T: ...
    def lookup_nowait(self, parent: int, name: bytes) -> Node: ...
    def getattr_nowait(self, inode: int) -> Node: ...
    def listing_nowait(self, inode: int, cookie: int = 0, limit: int = ...) -> list[Item]: ...
    def readlink_nowait(self, inode: int) -> bytes: ...
    def xattrs_nowait(self, inode: int) -> tuple[tuple[bytes, bytes], ...]: ...
    def xattr_nowait(self, inode: int, name: bytes) -> bytes | None: ...
    def file_nowait(self, inode: int) -> File: ...
    def read_parts_nowait(self, inode: int, offset: int, length: int) -> Parts | None: ...
    def make_ready(self, inode: int) -> None: ...
    def space(self, inode: int = ...) -> TreeSize: ...


class FileSystem:
    """A repository as the kernel wants to see it: everything by inode number; its root's is `repository.root_inode`.

    `appearance` says what is shown otherwise than it was published.

    Errors: PathError (also StaleInodeError) for the caller; what Fetcher raises where bytes cannot be had.
    """

    def __init__(self, repository: Repository, appearance: Appearance = AS_PUBLISHED) -> None:
        self.repository = repository
        self._appearance = appearance
        self._directories: Memory[int, bytes] = Memory(_DIRECTORIES)
        self._files: Memory[int, File] = Memory(_FILE_LOCATIONS)
        self._runs: Memory[tuple[int, int], bytes] = Memory(_RUNS)
        self._seen = Seen()
        self._following = Following(repository)

    def switch(self, repository: Repository) -> None:
        """Go on with another revision of the same repository.

        Every inode number that was given out keeps its meaning: a file that is open keeps its content, a directory is
        from now on what the new revision has at its path.
        """
        self.repository = repository
        self._runs = Memory(_RUNS)
        self._seen = Seen()
        self._following = Following(repository)

    async def bring(self, question: Callable[[], T]) -> T:
        """The answer to a `nowait` question, however long it takes (no longer than the fetcher's deadline)."""
        return await self.repository.bring(question)

    def lookup_nowait(self, parent: int, name: bytes) -> Node:
        """The inode that directory `parent` lists as `name`. Raises PathError: ENOENT, ENOTDIR, ENAMETOOLONG."""
        if len(name) > 255:
            raise PathError(errno.ENAMETOOLONG)
        repository = self.repository
        found = repository.lookup_nowait(self._directory_nowait(parent), name) if name else None
        if found is None:
            raise PathError(errno.ENOENT, name)
        inode = repository.inodes_of(found)[found.index]
        self._seen.note(inode, found)
        return self._node_numbered(inode, found)

    def getattr_nowait(self, inode: int) -> Node:
        """The inode itself; of a directory, as the current revision has it."""
        if inode != self.repository.root_inode:
            found = self._found_nowait(inode)
            if not found.entry.is_directory:
                return self._node_numbered(inode, found)
        path = self._directory_nowait(inode)
        return self._node_numbered(inode, self.repository.find_nowait(path))

    def listing_nowait(self, inode: int, cookie: int = 0, limit: int = _ALL) -> list[Item]:
        """The next lines of a directory's listing behind `cookie` (0: from the start); empty at the end. Never more
        than `limit`, the first two aside, so that a caller with little room does not pay for what it cannot take.

        A cookie is (run << 32 | place): run number of the listing, and place in the run's page; or END. It means the
        same in every process as long as the revision is the same.
        """
        if cookie == END:
            return []
        path = self._directory_nowait(inode)
        if cookie < _DOTS:
            return self._dots(inode, path)[cookie:]
        run, place = cookie >> _RUN_BITS, (cookie & (1 << _RUN_BITS) - 1) - _DOTS
        found = self._run_nowait(inode, path, run)
        if found is not None and place >= len(found.group.entries):
            run, place = run + 1, 0
            found = self._run_nowait(inode, path, run)
        return [] if found is None else self._items(found, run, place, limit)

    def readlink_nowait(self, inode: int) -> bytes:
        """The target of a symbolic link. Raises PathError EINVAL if it is none."""
        entry = self._found_nowait(inode).entry
        if not entry.is_symlink:
            raise PathError(errno.EINVAL)
        return self._appearance.show(entry).target

    def xattrs_nowait(self, inode: int) -> tuple[tuple[bytes, bytes], ...]:
        """The extended attributes of an inode: (name, value), by name."""
        return self.getattr_nowait(inode).entry.xattrs

    def xattr_nowait(self, inode: int, name: bytes) -> bytes | None:
        """The value of one extended attribute, also of those that `cvfs.about` has; None if there is none."""
        node = self.getattr_nowait(inode)
        if not name.startswith(about.PREFIX):
            return dict(node.entry.xattrs).get(name)
        value = about.of_any(name, self.repository)
        return about.of_file(name, self.file_nowait(inode)) if value is None and node.entry.is_regular else value

    def file_nowait(self, inode: int) -> File:
        """The content of a regular file. Raises PathError EISDIR or EINVAL if it is none."""
        file = self._files.get(inode)
        if file is None:
            file = File(self._regular_nowait(inode), self.repository.fetcher)
            self._files.put(inode, file, file.weight)
        return file

    def read_parts_nowait(self, inode: int, offset: int, length: int) -> Parts | None:
        """Bytes of a regular file, where that needs no wait, else None; raises as `file_nowait` does.

        Nothing is kept of a file that one question is enough for.
        """
        ready = self._following.take(inode, offset, length)
        if ready is not None:
            return (ready,)
        file = self._files.get(inode)
        if file is None:
            found = self._regular_nowait(inode)
            file = File(found, self.repository.fetcher)
            if offset or file.entry.size > length:
                self._files.put(inode, file, file.weight)
            else:
                self._following.note(inode, found)
        return file.read_parts_nowait(offset, length)

    def make_ready(self, inode: int) -> None:
        """To be called when a read of `inode` was answered: do what the next one will need, where that can be told.

        Raises what that one would.
        """
        self._following.make_ready(inode)

    def space(self, inode: int = ROOT_INODE) -> TreeSize:
        """The size of the file system that an inode is in."""
        summary = self.repository.manifest.summary
        return TreeSize(summary.size_bytes, summary.entries)

    def _regular_nowait(self, inode: int) -> Found:
        found = self._found_nowait(inode)
        if not found.entry.is_regular:
            raise PathError(errno.EISDIR if found.entry.is_directory else errno.EINVAL)
        return found

    def _found_nowait(self, inode: int) -> Found:
        """The record that has a number. The index is only a hint: the record itself says what its number is.

        Raises StaleInodeError: no page taken in explains the number.
        """
        where = self._seen.where(inode)
        if where is not None:
            return Found(where.page, self.repository.leaf_nowait(where.page), where.number, where.index)
        if inode == self.repository.root_inode:
            return self.repository.find_nowait(b"")
        place = self.repository.fetcher.place_of(inode)
        found = None if place is None else self.repository.located_nowait(place)
        if found is None or self.repository.inode_of(found) != inode:
            mender = self.repository.fetcher.mender
            raise NumberLost(inode, [mender]) if mender.is_of_use else StaleInodeError(inode)
        return found

    def _directory_nowait(self, inode: int) -> bytes:
        """The path of a directory. Raises PathError ENOTDIR if the inode is none."""
        if inode == self.repository.root_inode:
            return b""
        path = self._directories.get(inode)
        if path is None:
            record = self._found_nowait(inode).record
            if not record.entry.is_directory:
                raise PathError(errno.ENOTDIR)
            path = record.path
            self._directories.put(inode, path, 1)
        return path

    def _node_numbered(self, inode: int, found: Found) -> Node:
        group, index = found.group, found.index
        entry = group.entries[index]
        if entry.target or self._appearance.changes_owners:
            entry = self._appearance.show(entry)
        return make_node(inode, entry, group.contents[index])

    def _dots(self, inode: int, path: bytes) -> list[Item]:
        """The two lines that POSIX has at the start of every listing. Of their nodes only number and type count."""
        above, _ = split(path)
        parent = self.repository.directory_inode(above) if path else ROOT_INODE
        return [Item(b".", make_node(inode, _DOT, None), 1), Item(b"..", make_node(parent, _DOT, None), _DOTS)]

    def _run_nowait(self, inode: int, path: bytes, run: int) -> Found | None:
        """Run number `run` of a listing, its entries in one page. Which names the runs begin behind is remembered."""
        number, after = self._nearest_start(inode, run)
        found = self.repository.listing_nowait(path, after)
        while found is not None and number < run:
            number, after = number + 1, found.group.names[-1]
            self._runs.put((inode, number), after, 1)
            found = self.repository.listing_nowait(path, after)
        return found

    def _nearest_start(self, inode: int, run: int) -> tuple[int, bytes]:
        """The last run, not after `run`, of which it is remembered which name it begins behind, and that name.

        Cookies come from users, by lseek(2): from one that nobody was given, no more steps are taken back than there
        are runs to remember. The listing itself ends the way forward.
        """
        for number in range(run, max(run - _RUNS, 0), -1):
            after = self._runs.get((inode, number))
            if after is not None:
                return number, after
        return 0, b""

    def _items(self, found: Found, run: int, place: int, limit: int) -> list[Item]:
        group, inodes = found.group, self.repository.inodes_of(found)
        base = (run << _RUN_BITS) + _DOTS + 1
        first = max(place, found.index)
        last = min(first + limit, len(group.entries))
        items = []
        changes_owners = self._appearance.changes_owners
        for index in range(first, last):
            entry = group.entries[index]
            if entry.target or changes_owners:
                entry = self._appearance.show(entry)
            items.append(Item(entry.name, make_node(inodes[index], entry, group.contents[index]), base + index))
        self._seen.note_all(inodes[first:last], found, first)
        # If another directory follows in the page, this one ends here.
        if last == len(group.entries) and found.number + 1 < len(found.leaf.groups):
            items[-1] = replace(items[-1], cookie=END)
        return items


def make_node(inode: int, entry: Entry, content: WireContent | None) -> Node:
    if content is not None:
        return Node(inode, entry, entry.size, _stored_bytes(entry, content) + 511 >> 9)
    if stat.S_ISDIR(entry.mode):
        return Node(inode, entry, DIRECTORY_BYTES, DIRECTORY_BYTES // 512)
    return Node(inode, entry, entry.size, 0)


def _stored_bytes(entry: Entry, content: WireContent) -> int:
    """The bytes of a file that are not in a hole; of a file of very many chunks, its size."""
    locations = content.locations
    if len(locations) == 1:
        return locations[0].length
    return sum([location.length for location in locations]) if locations else entry.size
