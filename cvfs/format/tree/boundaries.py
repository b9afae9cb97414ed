"""Where a level of the tree is cut into pages (docs/format.md, section 4.3).

The decision looks at nothing but the records since the last cut, so equal runs of records are cut alike in every
tree, whatever was published before; after a change the cuts fall back into step within a page or two.
"""

import xxhash

from cvfs.format.pages import Child
from cvfs.model import Record

MIN_WEIGHT = 32 << 10
TARGET_WEIGHT = 96 << 10
MAX_WEIGHT = 512 << 10
_SCARCE = 4 * TARGET_WEIGHT
_FREQUENT = TARGET_WEIGHT // 4
"""A cut is expected once in so many bytes of weight: seldom before the target is reached, soon after it."""


def record_weight(record: Record) -> int:
    """About the size in bytes of an encoded record, its directory aside; of what the tree says alone, not of how its
    bytes happen to be packed."""
    entry, content = record.entry, record.content
    places = len(content.locations) + len(content.location_pages)
    weight = 80 + len(entry.name) + len(entry.target) + 48 * places
    if entry.xattrs:
        weight += sum(len(name) + len(value) for name, value in entry.xattrs)
    return weight


def directory_weight(directory: bytes) -> int:
    """What the first record of a directory in a page weighs more than the others: a page names the directory once.

    Without it, thousands of deep directories of one file each would fit into a page over the limit.
    """
    return 8 + len(directory)


def child_weight(child: Child) -> int:
    return 60 + len(child.directory) + len(child.name)


class Cutter:
    """Says after which item of a level a page ends. `level` is the page's: 0 for leaves."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._weight = 0

    def ends_page(self, order: bytes, name: bytes, weight: int) -> bool:
        """Take in the next item, by its key; True if the page ends after it."""
        self._weight += weight
        if self._weight < MIN_WEIGHT:
            return False
        scale = _SCARCE if self._weight < TARGET_WEIGHT else _FREQUENT
        drawn = xxhash.xxh3_64_intdigest(order + b"\0" + name, self._level) & 0xFFFFFFFF
        if self._weight < MAX_WEIGHT and drawn * scale >= weight << 32:
            return False
        self._weight = 0
        return True
