"""How to publish, and who is told meanwhile."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from cvfs.format.blob import DEFAULT_LEVEL
from cvfs.format.manifest import check_message
from publisher.publishing.report import Counts
from publisher.publishing.threads import usable_cpus
from publisher.source.tree import Excluded, SourceTree


@dataclass(frozen=True, slots=True)
class Options:
    """How to publish. `at`: the path in the repository that becomes equal to the tree; b"" is all of it.

    `accepts_rollback`: go on from an older revision than this host knows of. `published_s`: when the revision says that
    it was published; None: when it is.
    """

    at: bytes = b""
    level: int = DEFAULT_LEVEL
    message: str = ""
    is_dry_run: bool = False
    accepts_rollback: bool = False
    excluded: Excluded | None = None
    workers: int = field(default_factory=usable_cpus)
    published_s: int | None = None

    def __post_init__(self) -> None:
        """Raises FormatError: not a message, which must not be found out when all is done."""
        check_message(self.message)


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


class Watch(NamedTuple):
    """Who is told while a tree is published: `begin` with the tree, `tick` often, when more has been counted, `warn` of
    what has gone wrong and does no harm; `wait` if another publisher uses the same state; None: do not wait for it."""

    begin: Callable[[SourceTree, Counts], None] = _ignore
    tick: Callable[[], None] = _ignore
    warn: Callable[[str], None] = _ignore
    wait: Callable[[], None] | None = _ignore


SILENT = Watch()
