"""What a mount shows otherwise than it was published: owners, and symbolic links that contain variables.

Contents, names and inode numbers are never touched, so everything that is verified or cached stays what it was.
"""

import re
from collections.abc import Mapping

import msgspec

from cvfs.limits import MAX_PATH_BYTES
from cvfs.model import Entry

_VARIABLE = re.compile(rb"\$\(([A-Za-z_][A-Za-z0-9_]*)(?::-([^()]*))?\)")


class Owners(msgspec.Struct, frozen=True):
    """Whom things belong to: `one` if all are that one's, else whom `by_id` says, `others` where it says nothing, and
    without that whom the publisher said."""

    one: int | None = None
    by_id: Mapping[int, int] = msgspec.field(default_factory=dict)
    others: int | None = None

    def of(self, published: int) -> int:
        if self.one is not None:
            return self.one
        return self.by_id.get(published, published if self.others is None else self.others)

    def __bool__(self) -> bool:
        """Whether anything is changed at all."""
        return self.one is not None or bool(self.by_id) or self.others is not None


AS_PUBLISHED = Owners()


class Appearance:
    """`users` and `groups` own what is shown; `variables`, if they are not None, are put into the targets of links."""

    def __init__(
        self,
        users: Owners = AS_PUBLISHED,
        groups: Owners = AS_PUBLISHED,
        variables: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self._users, self._groups, self._variables = users, groups, variables
        self.changes_owners = bool(users) or bool(groups)
        """If not, only entries with a target need to be shown."""

    def show(self, entry: Entry) -> Entry:
        """The entry as it appears: `entry` itself where nothing is to be changed."""
        uid, gid, target = self._users.of(entry.uid), self._groups.of(entry.gid), entry.target
        if self._variables is not None and b"$(" in target:
            target = _resolve(target, self._variables)
        if uid == entry.uid and gid == entry.gid and target is entry.target:
            return entry
        size = len(target) if entry.target else entry.size
        return msgspec.structs.replace(entry, uid=uid, gid=gid, target=target, size=size)


def _resolve(target: bytes, variables: Mapping[bytes, bytes]) -> bytes:
    """`target` with its $(NAME) and $(NAME:-default) resolved; a name without a value stands for nothing. Left alone
    where the whole would be too long for a path."""
    resolved = _VARIABLE.sub(lambda match: variables.get(match[1], match[2] or b""), target)
    return resolved if len(resolved) <= MAX_PATH_BYTES and resolved != target else target
