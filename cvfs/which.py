"""Which revision of a repository is wanted: how people write it."""

import re
from datetime import UTC, datetime

import msgspec

_SUFFIX = re.compile(r"(?P<address>.+)@(?P<name>[A-Za-z0-9][A-Za-z0-9._+-]*)", re.ASCII | re.DOTALL)


class Which(msgspec.Struct, frozen=True):
    """A revision that a user means: `number`; or what `tag` names; or the newest that was published by `date_s`, in
    seconds since 1970. One of the three is not None."""

    number: int | None = None
    tag: str | None = None
    date_s: int | None = None

    def __str__(self) -> str:
        if self.date_s is not None:
            return f"the revision of {show_date(self.date_s)}"
        return f"revision {self.number}" if self.tag is None else f"tag {self.tag!r}"


def split_address(text: str) -> tuple[str, Which | None]:
    """Parts `ADDRESS@TAG` or `ADDRESS@N`; None if nothing is said of a revision. No address ends in @ and a name:
    user names do not belong in it, and one that does all the same can be written with a slash behind."""
    match = _SUFFIX.fullmatch(text)
    if match is None:
        return text, None
    name = match["name"]
    return match["address"], Which(number=int(name)) if name.isdigit() else Which(tag=name)


def parse_date(text: str) -> int:
    """The instant that `text` says in ISO 8601, in seconds since 1970: a date begins with its first second, a time
    without zone is UTC. Raises ValueError."""
    instant = datetime.fromisoformat(text.strip())
    return int((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp())


def show_date(date_s: int) -> str:
    """In ISO 8601, as `parse_date` reads it."""
    try:
        return datetime.fromtimestamp(date_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):  # the publisher may say any 63 bits
        return f"{date_s} s after 1970"
