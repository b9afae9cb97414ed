"""The repositories of one mount, as a forest sees them: those that are configured, and those of allowed domains.

Names and root inodes are in memory; the configuration is looked at again when the kernel asks and it has changed.
"""

import errno
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from cvfs.cache.index import InodeIndex
from cvfs.cache.memory import Memory
from cvfs.errors import ConfigError, CvfsError, PathError
from cvfs.filesystem import FileSystem
from cvfs.flights import Flights
from cvfs.forest import NAMES_S
from cvfs.format.pages import Group, Key, Leaf
from cvfs.inodes import Numbering
from cvfs.missing import Missing
from cvfs.model import BlobRef, Digest, Entry
from cvfs.mount.member import Member, Opened
from cvfs.mount.shown import Shown
from cvfs.mount.sites import Names, Site, Sites

log = logging.getLogger(__name__)

_LOOK_S: Final = NAMES_S / 2
_TRIED: Final = 1024
"""Unlisted names that were asked for in vain and are remembered: whoever asks for more makes more questions."""

_NO_PAGE: Final = BlobRef(Digest(bytes(32)), 1, 1)
_ROOT: Final = Entry(b"", 0o40755, 0, 0, 0, 0, 2, 0, 0, b"", b"", ())
_ROOT_LEAF: Final = Leaf((), [Group(b"", [b""], (_ROOT,), (None,))], [b""], Key(b"", b""), Key(b"", b""))

Opener = Callable[[Site, int], Awaitable[Opened]]
"""Opens a repository; its root is to have that inode number."""


class _Outdated(Missing):
    """The names have to be read again."""

    def __init__(self, repositories: "Repositories") -> None:
        super().__init__("names")
        self._repositories = repositories

    async def bring(self) -> None:
        await self._repositories.load()


class Repositories:
    """All that a mount of many shows; see `cvfs.forest.Trees`. Call `load` before anything else.

    `shown` says what other workers of the mount have opened. A member once made stays: what the kernel was told of it
    keeps its meaning, whatever becomes of the configuration. What was removed from that and is there again is opened
    anew, since it may be another repository: `on_anew(label)` is called then.
    """

    def __init__(self, sites: Sites, index: InodeIndex, shown: Shown, opener: Opener, nursery: trio.Nursery) -> None:
        self._sites, self._index, self._shown, self._opener = sites, index, shown, opener
        self._flights = Flights(nursery)
        self._names = Names(())
        self._listed: list[Member] = []
        self._listed_labels: frozenset[str] = frozenset()
        self._members: dict[str, Member] = {}
        self._by_root: dict[int, Member] = {}
        self._by_seed: dict[int, Member] = {}
        self._tried: Memory[str, Member] = Memory(_TRIED)
        self._stamp_ns, self._looked_at = 0, 0.0
        self._removed: set[str] = set()
        self._changed: dict[str, float] = {}
        """Names that have come or gone, and when: the kernel believes what was so before for `NAMES_S`."""
        self.on_open: Callable[[Member, Opened], None] = lambda member, opened: None
        self.on_anew: Callable[[str], None] = lambda label: None

    async def load(self) -> None:
        """Read the names anew. What cannot be read is logged, and the names that were known stay."""
        await self._flights.join(None, self._load)

    def forgive(self) -> None:
        """Try at once what could not be opened, for whoever asks next: it may have been the configuration's fault."""
        self._tried = Memory(_TRIED)
        for member in self._members.values():
            member.forgive()

    def forget(self, label: str) -> None:
        """Open it anew, for whoever asks next: another worker knows that it may be another repository now."""
        self._removed.discard(label)
        if label in self._members:
            self._members[label].close()

    def changed(self) -> list[str]:
        """The names of which the kernel may still believe that they are there, or not."""
        return list(self._changed)

    async def problems(self) -> list[str]:
        """What is wrong with the configuration, also of repositories that nobody uses."""
        return await trio.to_thread.run_sync(self._sites.problems)

    def members(self) -> Sequence[Member]:
        """Those that are listed, and those that were opened and are allowed, by name."""
        return [self._members[label] for label in sorted(self._members) if self._may_be_shown(label)]

    def member(self, label: str) -> Member | None:
        """The one of these with this name."""
        return self._members.get(label) if self._may_be_shown(label) else None

    def listed_nowait(self) -> Sequence[Member]:
        self._look()
        return self._listed

    def mtime_ns_nowait(self) -> int:
        self._look()
        return self._stamp_ns

    def named_nowait(self, name: bytes) -> Member | None:
        """Raises NotOpen for a name that is not listed: only its server knows whether there is such a repository."""
        self._look()
        try:
            label = name.decode("ascii")
        except UnicodeDecodeError:
            return None
        if label in self._listed_labels:
            return self._members[label]
        if not self._names.allows(label):
            return None
        return self._members.get(label) or self._unlisted_nowait(label)

    def rooted_nowait(self, inode: int) -> Member | None:
        return self._by_root.get(inode)

    def numbered_nowait(self, seed: int) -> Member | None:
        """Another worker may have opened what this one has not heard of."""
        member = self._by_seed.get(seed)
        if member is None and any(label not in self._members for label in self._shown.names()):
            raise _Outdated(self)
        return member

    def opened(self) -> Sequence[FileSystem]:
        return [member.opened.filesystem for member in self._members.values() if member.opened]

    def _may_be_shown(self, label: str) -> bool:
        return label in self._listed_labels or self._names.allows(label)

    def _unlisted_nowait(self, label: str) -> Member:
        member = self._tried.get(label)
        if member is None:
            member = Member(label, 0, self._flights, self._open, lambda: False)
            self._tried.put(label, member, 1)
        try:
            member.filesystem_nowait()
        except ConfigError:  # there is no such repository, or nobody has said whose it would be
            error = PathError(errno.ENOENT, label)
            error.lasting_s = 0.0
            raise error from None
        return member

    def _look(self) -> None:
        """Raises _Outdated if the names may have changed. Files are asked for their times, and that seldom."""
        now = time.monotonic()
        if now >= self._looked_at + _LOOK_S:
            if self._sites.stamp_ns() != self._stamp_ns:
                raise _Outdated(self)
            self._looked_at = now

    async def _load(self) -> None:
        stamp_ns = self._sites.stamp_ns()  # before the names: what changes meanwhile is seen next time
        try:
            self._names = await trio.to_thread.run_sync(self._sites.names)
        except ConfigError as error:
            log.error("the configuration is not read again: %s", error)  # noqa: TRY400
        labels = dict.fromkeys([*self._names.listed, *self._shown.names()])
        new = [label for label in labels if label not in self._members]
        for label, inode in zip(new, await trio.to_thread.run_sync(self._number, new), strict=True):
            self._add(Member(label, inode, self._flights, self._open, self._is_known(label)))
        before, is_first = self._listed_labels, not self._looked_at
        self._listed = [self._members[label] for label in sorted(self._names.listed) if label in self._members]
        self._listed_labels = frozenset(member.label for member in self._listed)
        if stamp_ns != self._stamp_ns:
            self.forgive()
        self._stamp_ns, self._looked_at = stamp_ns, time.monotonic()
        if not is_first:
            self._note_changes(before)

    def _note_changes(self, before: frozenset[str]) -> None:
        now = self._looked_at
        self._changed = {label: at for label, at in self._changed.items() if now < at + NAMES_S}
        self._changed |= dict.fromkeys(before ^ self._listed_labels, now)
        self._removed |= {label for label in before if not self._may_be_shown(label)}
        for label in [label for label in self._removed if self._may_be_shown(label)]:
            self._removed.remove(label)
            self._shown.drop(label)
            self.forget(label)
            self.on_anew(label)

    def _is_known(self, label: str) -> Callable[[], bool]:
        return lambda: label in self._shown.names()

    def _number(self, labels: Sequence[str]) -> list[int]:
        """The inode numbers of roots, which no other file gets from now on."""
        return [self._index.adopt(Numbering(label), _NO_PAGE, _ROOT_LEAF)[0][0] for label in labels]

    def _add(self, member: Member) -> None:
        seed = Numbering(member.label).seed
        other = self._by_seed.setdefault(seed, member)
        if other is not member:
            log.error("%s is not shown: its inode numbers would be those of %s", member.label, other.label)
            return
        self._members[member.label] = self._by_root[member.root_inode] = member

    async def _open(self, member: Member) -> Opened:
        if not member.root_inode:
            member.root_inode, *_ = await trio.to_thread.run_sync(self._number, [member.label])
        opened = await self._open_latest(member)
        if member.label not in self._members:
            self._add(member)
            if member.label not in self._members:
                opened.client.close()
                raise CvfsError(f"{member.label} cannot be told from another repository")
        self.on_open(member, opened)
        return opened

    async def _open_latest(self, member: Member) -> Opened:
        """What the configuration says of it, also if that has changed while the one before was being opened."""
        while True:
            closed = member.closed
            site = await trio.to_thread.run_sync(self._sites.site, member.label)
            opened = await self._opener(site, member.root_inode)
            if member.closed == closed:
                return opened
            opened.client.close()
            if self._shown.manifest(member.label) == opened.filesystem.repository.manifest:
                self._shown.drop(member.label)
