"""What it means for a mount that the signatures on what it serves have expired."""

import logging
import time
from typing import Any

from msgspec.structs import replace

from cvfs.appearance import Appearance
from cvfs.errors import ExpiredError, PathError
from cvfs.file import File, Parts
from cvfs.filesystem import AS_PUBLISHED, FileSystem, Item, Node
from cvfs.heads import Heads
from cvfs.repository import Repository

log = logging.getLogger(__name__)

_SAY_AGAIN_S = 3600.0

_KEPT_S = 60.0


class ExpiryWarning:
    """Says now and then in the log that nobody vouches any more for what is served."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._said_at = -_SAY_AGAIN_S

    def look(self) -> None:
        if not self._heads.is_expired:
            self._said_at = -_SAY_AGAIN_S
        elif time.monotonic() >= self._said_at + _SAY_AGAIN_S:
            self._said_at = time.monotonic()
            log.error("%s", expired(self._heads))


def expired(heads: Heads) -> ExpiredError:
    """What is to be said of a head that has expired, or that is not known."""
    head = heads.head
    if head is None:
        return ExpiredError(
            "nothing says until when what is served is signed: another process has found that out, and could not "
            "write it down (see the log, and cvfs doctor for the state directory)"
        )
    until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(head.trusted.expires_s))
    return ExpiredError(
        f"revision {head.manifest.revision} of {head.manifest.repository} was signed until {until}: newer ones "
        "are held back, or the publisher has not signed again (cvfs-publisher resign)"
    )


def trust_status(heads: Heads) -> dict[str, Any]:
    """What `cvfs status` shows of the trust in a repository."""
    head = heads.head
    if head is None:
        return {}
    trusted = head.trusted
    return {
        "root": trusted.origin,
        "root_version": trusted.root_version,
        "root_sha256": trusted.root_ids[-1],
        "expires_s": trusted.expires_s,
        "expired": heads.is_expired,
        "newest_revision": head.manifest.revision,
    }


class StrictFileSystem(FileSystem):
    """Answers as long as what it serves is vouched for, then raises ExpiredError.

    The kernel may keep an answer no longer than that either, and in case its clock stops meanwhile (a host that is
    suspended) or ours jumps, for `_KEPT_S` at most: then it asks again, and gets the error.
    """

    def __init__(self, repository: Repository, heads: Heads, appearance: Appearance = AS_PUBLISHED) -> None:
        super().__init__(repository, appearance)
        self._heads = heads

    def _check(self) -> float:
        """For how long an answer of this moment holds.

        Another process may have accepted what is signed for a shorter time than the known head, so what it has written
        down is looked for also while that is fresh. Without a head nobody vouches for anything.
        """
        heads = self._heads
        heads.recall()
        if heads.head is None or heads.is_expired:
            raise expired(heads)
        return min(heads.fresh_s, _KEPT_S)

    def lookup_nowait(self, parent: int, name: bytes) -> Node:
        lasting_s = self._check()
        try:
            return replace(super().lookup_nowait(parent, name), lasting_s=lasting_s)
        except PathError as error:
            error.lasting_s = lasting_s
            raise

    def getattr_nowait(self, inode: int) -> Node:
        return replace(super().getattr_nowait(inode), lasting_s=self._check())

    def listing_nowait(self, inode: int, cookie: int = 0, *limits: int) -> list[Item]:
        lasting_s = self._check()
        items = super().listing_nowait(inode, cookie, *limits)
        return [replace(item, node=replace(item.node, lasting_s=lasting_s)) for item in items]

    def readlink_nowait(self, inode: int) -> bytes:
        self._check()
        return super().readlink_nowait(inode)

    def file_nowait(self, inode: int) -> File:
        self._check()
        return super().file_nowait(inode)

    def read_parts_nowait(self, inode: int, offset: int, length: int) -> Parts | None:
        self._check()
        return super().read_parts_nowait(inode, offset, length)
