"""What a publish did, counted."""

from typing import Any

import msgspec


class Counts(msgspec.Struct):
    """Filled while a tree is published. Bytes are plain unless they are `stored`.

    read = packed + dedup + hole: each byte that was read went into a new pack, was known, or is a zero of a hole.
    """

    files: int = 0
    directories: int = 0
    tree_bytes: int = 0
    files_read: int = 0
    read_bytes: int = 0
    dedup_bytes: int = 0
    hole_bytes: int = 0
    packs: int = 0
    packed_bytes: int = 0
    packs_stored_bytes: int = 0
    pages: int = 0
    pages_stored_bytes: int = 0

    @property
    def stored_bytes(self) -> int:
        return self.packs_stored_bytes + self.pages_stored_bytes

    @property
    def saved_by_dedup_bytes(self) -> int:
        return self.dedup_bytes + self.hole_bytes

    @property
    def saved_by_compression_bytes(self) -> int:
        """Never negative: a pack that does not shrink is stored as it is."""
        return self.packed_bytes - self.packs_stored_bytes


class Changes(msgspec.Struct, frozen=True):
    """Compared with the revision before: files of any kind but directories; and how many directories differ."""

    new: int
    changed: int
    removed: int
    unchanged: int
    directories: int

    @property
    def is_any(self) -> bool:
        return bool(self.new or self.changed or self.removed or self.directories)


class Report(msgspec.Struct, frozen=True):
    """The result of a publish. `is_published` is false if nothing had changed, and in a dry run. `is_repair`: nothing
    had changed, but the revision before had lost packs."""

    repository: str
    revision: int
    is_published: bool
    is_dry_run: bool
    is_repair: bool
    root: str
    changes: Changes
    counts: Counts
    seconds: float

    def as_json(self) -> dict[str, Any]:
        counts = self.counts
        return {
            "repository": self.repository,
            "revision": self.revision,
            "published": self.is_published,
            "dry_run": self.is_dry_run,
            "repair": self.is_repair,
            "root": self.root,
            "changes": msgspec.to_builtins(self.changes),
            "tree": {"files": counts.files, "directories": counts.directories, "bytes": counts.tree_bytes},
            "read": {"files": counts.files_read, "bytes": counts.read_bytes},
            "stored": {"packs": counts.packs, "pages": counts.pages, "bytes": counts.stored_bytes},
            "saved": {
                "dedup_bytes": counts.saved_by_dedup_bytes,
                "compression_bytes": counts.saved_by_compression_bytes,
            },
            "seconds": round(self.seconds, 3),
        }
