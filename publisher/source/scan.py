"""From a directory tree to entries in key order; what has to be read for it is left open.

A file that looks as it did when it was last read keeps its entry; the others come out as `Unread`.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from cvfs.errors import PublishError
from cvfs.limits import MAX_NAME_BYTES, MAX_PATH_BYTES
from cvfs.model import NO_CONTENT, Content, Entry, Record, join
from publisher.repository.link_groups import link_group_number
from publisher.source.entry import read_xattrs
from publisher.source.scanned import LinkGroup, Run, Unread, known_as
from publisher.source.tree import Directory, SourceTree
from publisher.state.stat_cache import KnownDirectory, KnownFile, StatCache, is_settled

RUN_NAMES = 1024
"""Names that are dealt with, and remembered, together."""

Locate = Callable[[Entry], Content | None]
"""Where the content of an entry is stored already; None: nowhere, or not known."""


class Scanner:
    """Walks `source`, whose root becomes `prefix` in the repository."""

    def __init__(self, source: SourceTree, prefix: bytes, cache: StatCache, locate: Locate) -> None:
        self._source = source
        self._prefix = prefix
        self._cache = cache
        self._locate = locate
        self._counts: dict[tuple[int, int], int] | None = None
        self._groups: dict[tuple[int, int], LinkGroup] = {}

    def root(self, name: bytes) -> Entry:
        """The entry of the tree's root, under the name it gets in the repository."""
        status = os.fstat(self._source.descriptor)
        xattrs = read_xattrs(self._source.descriptor)
        entry = self._source.entry(b"", name, status, xattrs)
        return replace(entry, nlink=2 + self._source.list(b"").subdirectories)

    def runs(self) -> Iterator[Run]:
        for directory in self._source.walk():
            yield from self._directory(directory)

    def _directory(self, directory: Directory) -> Iterator[Run]:
        names = [name for name, _ in directory.listing.names]
        if not names:
            return
        repository_path = join(self._prefix, directory.path) if directory.path else self._prefix
        known = self._cache.directory(directory.path)
        descriptor = self._source.open_directory(directory.path)
        try:
            for number, start in enumerate(range(0, len(names), RUN_NAMES)):
                is_last = start + RUN_NAMES >= len(names)
                run = Run(repository_path, directory.path, number, is_last)
                self._fill(run, descriptor, names[start : start + RUN_NAMES], directory.counts, known)
                yield run
        finally:
            os.close(descriptor)

    def _fill(
        self, run: Run, descriptor: int, names: list[bytes], counts: dict[bytes, int], remembered: KnownDirectory
    ) -> None:
        """The hot path of an unchanged tree: one lstat, one look into the cache for each name."""
        cached = remembered.run(run.number, names)
        self._check_lengths(run, names)
        seen_ns = time.time_ns()
        prefix = run.path + b"/" if run.path else b""
        directory, items, locate = run.directory, run.items, self._locate
        for name in names:
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except OSError as error:
                raise self._source.error(prefix + name, error) from error
            known = cached.get(name)
            if known is not None and _is_same(known, status):
                entry = self._with_links(known.entry, status, prefix + name, counts)
                content = locate(entry)
                if content is not None:
                    items.append(Record(directory, entry, content))
                    run.known.append(known)
                    continue
            self._add_new(run, descriptor, name, status, seen_ns, counts)
        run.is_changed = run.is_changed or not remembered.is_as_remembered(names)

    def _check_lengths(self, run: Run, names: list[bytes]) -> None:
        longest = max(names, key=len)
        if len(longest) > MAX_NAME_BYTES or len(run.directory) + 1 + len(longest) > MAX_PATH_BYTES:
            raise PublishError(f"name or path too long for a repository: {self._source.show(join(run.path, longest))}")

    def _add_new(
        self, run: Run, descriptor: int, name: bytes, status: os.stat_result, seen_ns: int, counts: dict[bytes, int]
    ) -> None:
        run.is_changed = True
        path = join(run.path, name)
        if stat.S_ISREG(status.st_mode):
            run.items.append(self._unread(run.directory, path, name, status))
            return
        entry = self._read_bare(path, descriptor, name, status)
        if is_settled(status, seen_ns):
            run.known.append(known_as(entry, status))
        entry = self._with_links(entry, status, path, counts)
        run.items.append(Record(run.directory, entry, NO_CONTENT))

    def _unread(self, directory: bytes, path: bytes, name: bytes, status: os.stat_result) -> Unread:
        file = Unread(directory, path, name, status)
        if status.st_nlink > 1:
            file.group = group = self._group(status, path)
            if group is not None and group.first is not None:
                file.same = group.first
            elif group is not None:
                group.first = file
        return file

    def _read_bare(self, path: bytes, descriptor: int, name: bytes, status: os.stat_result) -> Entry:
        """The entry of anything but a regular file."""
        try:
            target = os.readlink(name, dir_fd=descriptor) if stat.S_ISLNK(status.st_mode) else b""
            xattrs = read_xattrs(b"/proc/self/fd/%d/%s" % (descriptor, name))
        except OSError as error:
            raise self._source.error(path, error) from error
        return self._source.entry(path, name, status, xattrs, target=target)

    def _with_links(self, entry: Entry, status: os.stat_result, path: bytes, counts: dict[bytes, int]) -> Entry:
        if stat.S_ISDIR(entry.mode):
            if path not in counts:
                raise self._source.changed(path)
            nlink = 2 + counts[path]
            return entry if entry.nlink == nlink else replace(entry, nlink=nlink)
        group = self._group(status, path) if status.st_nlink > 1 else None
        return entry if group is None else group.apply(entry)

    def _group(self, status: os.stat_result, path: bytes) -> LinkGroup | None:
        """The link group of a file of which the kernel counts several names; None if one of them is in the tree."""
        identity = (status.st_dev, status.st_ino)
        group = self._groups.get(identity)
        if group is None:
            if self._counts is None:
                self._counts = self._source.count_names()
            count = self._counts.get(identity, 1)
            if count == 1:
                return None
            group = self._groups[identity] = LinkGroup(link_group_number(join(self._prefix, path)), count)
        return group


def _is_same(known: KnownFile, status: os.stat_result) -> bool:
    entry = known.entry
    return (
        known.ctime_ns == status.st_ctime_ns
        and known.inode == status.st_ino
        and known.size == status.st_size
        and entry.mtime_ns == status.st_mtime_ns
        and entry.mode == status.st_mode
        and entry.uid == status.st_uid
        and entry.gid == status.st_gid
    )
