"""What differs between two revisions, path by path."""

from collections.abc import Iterator
from typing import NamedTuple

from cvfs.format.tree import diff
from cvfs.model import Entry, Manifest, Record
from publisher.repository.pages import PageLoader
from publisher.store import Store


class Difference(NamedTuple):
    """A path that the older revision has as `before`, the newer one as `after`; None: not at all."""

    path: bytes
    before: Entry | None
    after: Entry | None

    @property
    def kind(self) -> str:
        """added, removed; changed: another content, target, device or type; touched: only what is said about it."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        return "touched" if _substance(self.before) == _substance(self.after) else "changed"


def differences(store: Store, older: Manifest, newer: Manifest) -> Iterator[Difference]:
    """In key order: the paths of a directory are together. Only pages that differ are read.

    Raises StoreError, IntegrityError, FormatError.
    """
    pages = PageLoader(store)
    for before, after in diff(pages.tree(older), pages.tree(newer), pages):
        path = before.path if before is not None else after.path if after is not None else b""
        yield Difference(path, _entry(before), _entry(after))


def _entry(record: Record | None) -> Entry | None:
    return None if record is None else record.entry


def _substance(entry: Entry) -> tuple[object, ...]:
    return entry.mode >> 12, entry.content_id, entry.size, entry.target, entry.rdev
