"""Which revision is current: what the publisher has signed and a mirror serves, held against what was trusted before.

`question` asks the mirrors and verifies, `kept` remembers.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from cvfs.errors import ConfigError, CvfsError, TrustError
from cvfs.heads.kept import Head, Kept, state_key
from cvfs.heads.question import Question
from cvfs.mirrors import Mirrors
from cvfs.trust.anchor import Anchor

__all__ = ["Head", "Heads", "state_key"]

log = logging.getLogger(__name__)

_SAY_AGAIN_S = 3600.0
"""How often a problem that lasts is logged."""


class Heads:
    """The head of the repository at `url`, asked from `mirrors`, trusted as `anchor` says, remembered in `directory`.

    `now` gives seconds since 1970. Without `remembers`, what is accepted is forgotten with this object.
    """

    def __init__(
        self,
        mirrors: Mirrors,
        url: str,
        directory: Path,
        anchor: Anchor,
        *,
        now: Callable[[], float] = time.time,
        remembers: bool = True,
    ) -> None:
        self._mirrors, self._url, self._anchor, self._now = mirrors, url, anchor, now
        self._remembers = remembers
        self._kept = Kept(directory, anchor)
        self.head = self._kept.head()
        """The last head that was accepted, None before there was any."""
        self._etag = self.head.trusted.etag if self.head else None
        self.problem = ""
        """Why the last question to the mirrors had no good answer; empty if it had one."""
        self._said = ("", 0.0)

    @property
    def is_expired(self) -> bool:
        """Whether the known head was signed for a time that has passed."""
        return self.head is not None and self._now() >= self.head.trusted.expires_s

    @property
    def fresh_s(self) -> float:
        """For how long the known head is still signed for; nothing or less once it has expired."""
        return self.head.trusted.expires_s - self._now() if self.head is not None else 0.0

    async def current(self, deadline_s: float, known_deadline_s: float | None = None) -> Head:
        """The head, within `deadline_s`; the known one if no mirror has one that is good within `known_deadline_s`.

        Whoever gets a new one hands it to `accept` once its tree can be read. Without a known head raises TrustError,
        TransportError, IntegrityError, FormatError, and ConfigError where there is no repository, or nobody has said
        where trust begins. Always a checkpoint; cancelled: nothing changed.
        """
        self._check_anchor()
        try:
            head = await self._ask(known_deadline_s if self.head and known_deadline_s else deadline_s)
        except CvfsError as error:
            if self.head is None:
                raise
            self.complain(error)
            return msgspec.structs.replace(self.head, problem=self.problem)
        self.problem = ""
        return head

    async def accept(self, head: Head) -> None:
        """Trust `head` from now on, also after a restart. What stands in the way of remembering it is only logged."""
        if self.head is not None and head.trusted == self.head.trusted:
            return
        self._take(msgspec.structs.replace(head, problem=""))
        if self._remembers:
            await self._kept.keep(head)

    def recall(self) -> None:
        """Take over what another process of this host has accepted meanwhile; it is looked for once a second."""
        found = self._kept.look_again()
        if found is not None and (self.head is None or found.trusted.age > self.head.trusted.age):
            self._take(found)

    def complain(self, error: Exception) -> None:
        """Remember, and log now and then, why the known head is not replaced by a newer one. What is no CvfsError is a
        bug, told as one."""
        is_expected = isinstance(error, CvfsError)
        self.problem = str(error) if is_expected else repr(error)
        text, said_at = self._said
        if text == self.problem and time.monotonic() < said_at + _SAY_AGAIN_S:
            return
        self._said = self.problem, time.monotonic()
        level = logging.ERROR if isinstance(error, TrustError) or not is_expected else logging.WARNING
        revision = self.head.manifest.revision if self.head else None
        trace = None if is_expected else error
        log.log(level, "%s: going on with revision %s, known before", self.problem, revision, exc_info=trace)

    def _take(self, head: Head) -> None:
        self.head, self._etag = head, head.trusted.etag

    def _check_anchor(self) -> None:
        if self._kept.obstacle is not None:
            raise self._kept.obstacle
        if self.head is None and self._anchor.is_empty:
            raise ConfigError(
                f"no root of trust for {self._url}: get root.json or its SHA-256 from the publisher (cvfs-publisher "
                "key list STORE tells it), and use --root FILE or --root-sha256 HEX"
            )

    async def _ask(self, deadline_s: float) -> Head:
        known = self.head
        question = Question(self._mirrors, self._url, self._anchor, self._now, known, self._kept.before, self._etag)
        news = await question.ask(deadline_s)
        if news is not None:
            return news
        assert known is not None
        if self.head is known:
            self._etag = question.etag
        return self.head or known
