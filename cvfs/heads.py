"""Which revision is current: what the publisher has signed and a mirror serves, held against what was trusted before.

The last state that verified to the end is kept in the state directory, outside the cache, which may be wiped. It is
what a client without a network goes on with, and what no mirror can take it back from. A question that brings no news
is one conditional request, and needs nothing of python-tuf.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from cvfs.bootstrap import Answers, Opening, ask_ahead, open_source
from cvfs.errors import (
    ConfigError,
    CvfsError,
    ExpiredError,
    FormatError,
    IntegrityError,
    StatusError,
    TooLargeError,
    TrustError,
)
from cvfs.format.blob import blob_path, check, unseal
from cvfs.format.manifest import decode_manifest
from cvfs.mirrors import Mirrors, Source
from cvfs.model import BlobRef, Manifest
from cvfs.trust import names, state
from cvfs.trust.pin import Pin
from cvfs.trust.state import Trusted, make_trusted
from cvfs.trust.values import Bundle, Chain, root_id

log = logging.getLogger(__name__)

_SAY_AGAIN_S = 3600.0
"""How often a problem that lasts is logged."""

_LEAST_S = 1.0
"""For the manifest, when the metadata has taken all the time there was."""


@dataclass(frozen=True, slots=True)
class Head:
    """A revision that is signed. `problem` says why nothing newer could be had, and is empty if a mirror answered."""

    manifest: Manifest
    trusted: Trusted
    problem: str = ""


class _News(NamedTuple):
    """A chain that is not the known one, the ids of all roots that it rests on, and what else came from its mirror."""

    chain: Chain
    root_ids: tuple[str, ...]
    etag: str | None
    early: Answers


class Heads:
    """The head of the repository at `url`, asked from `mirrors`, trusted as `pin` says, remembered in `directory`.

    `now` gives seconds since 1970.
    """

    def __init__(
        self, mirrors: Mirrors, url: str, directory: Path, pin: Pin, *, now: Callable[[], float] = time.time
    ) -> None:
        self._mirrors, self._url, self._directory, self._pin, self._now = mirrors, url, directory, pin, now
        self._before, self._obstacle = _load(directory, pin)
        self.head = _admitted(self._before, pin)
        """The last head that was accepted, None before there was any."""
        self._etag = self.head.trusted.etag if self.head else None
        self.problem = ""
        """Why the last question to the mirrors had no good answer; empty if it had one."""
        self._said = ("", 0.0)
        self._recalled_at = 0.0

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
        self._check_pin()
        try:
            head = await self._ask(known_deadline_s if self.head and known_deadline_s else deadline_s)
        except CvfsError as error:
            if self.head is None:
                raise
            self.complain(error)
            return replace(self.head, problem=self.problem)
        self.problem = ""
        return head

    async def accept(self, head: Head) -> None:
        """Trust `head` from now on, also after a restart. What stands in the way of remembering it is only logged."""
        if self.head is not None and head.trusted == self.head.trusted:
            return
        self.head, self._etag = replace(head, problem=""), head.trusted.etag
        try:
            await trio.to_thread.run_sync(state.store, self._directory, head.trusted)
        except OSError as error:
            log.warning("cannot remember what is trusted in %s: %s", self._directory, error.strerror)

    def recall(self) -> None:
        """Take over what another process of this host has accepted meanwhile; it is looked for once a second."""
        if time.monotonic() < self._recalled_at + 1.0:
            return
        self._recalled_at = time.monotonic()
        trusted, _ = _load(self._directory, self._pin)
        found = _admitted(trusted, self._pin)
        if found is not None and (self.head is None or found.trusted.age > self.head.trusted.age):
            self.head, self._etag = found, found.trusted.etag

    def complain(self, error: CvfsError) -> None:
        """Remember, and log now and then, why the known head is not replaced by a newer one."""
        self.problem = str(error)
        text, said_at = self._said
        if text == self.problem and time.monotonic() < said_at + _SAY_AGAIN_S:
            return
        self._said = self.problem, time.monotonic()
        level = logging.ERROR if isinstance(error, TrustError) else logging.WARNING
        revision = self.head.manifest.revision if self.head else None
        log.log(level, "%s: going on with revision %s, known before", error, revision)

    def _check_pin(self) -> None:
        if self._obstacle is not None:
            raise self._obstacle
        if self.head is None and self._pin.is_empty:
            raise ConfigError(
                f"no root of trust for {self._url}: get root.json or its SHA-256 from the publisher (cvfs-publisher "
                "key list STORE tells it), and use --root FILE or --root-sha256 HEX"
            )

    async def _ask(self, deadline_s: float) -> Head:
        deadline = time.monotonic() + deadline_s
        try:
            news = await self._mirrors.consult(self._verify, deadline_s)
        except StatusError as error:
            raise (_no_repository(error, self._url) if error.status in (404, 410) else error) from error
        if news is None and self.head is not None:
            return self.head
        assert news is not None
        return await self._complete(news, max(_LEAST_S, deadline - time.monotonic()))

    async def _verify(self, source: Source) -> _News | None:
        """What one mirror has, verified down to the targets; None if that is what is known."""
        if self.head is None:
            opening = await open_source(source, self._pin.root, self._pin)
            chain = await self._follow(source, self._begin(opening), opening.early)
            return _News(chain, (root_id(opening.root), *chain.new_root_ids), opening.etag, opening.early)
        known = self.head.trusted
        etag = None if self.is_expired else self._etag  # a server whose ETags are wrong must not freeze it for longer
        response = await source.get(names.TIMESTAMP, max_bytes=names.MAX_TIMESTAMP_BYTES, etag=etag)
        if response.not_modified or response.data == known.timestamp.encode():
            if self.is_expired:
                raise ExpiredError(f"{source.url} has nothing newer than what has expired")
            self._etag = response.etag
            return None
        early = await ask_ahead(source, response.data, known.root_version, known.timestamp.encode())
        chain = await self._follow(source, known.bundle, early)
        return _News(chain, known.root_ids + chain.new_root_ids, response.etag, early)

    def _begin(self, opening: Opening) -> Bundle:
        """What to hold the first answers against: a root, and what was trusted before another root was pinned."""
        before = self._before
        if before is None or before.repository != opening.repository:
            return Bundle(opening.root)
        return replace(before.bundle, root=opening.root)

    async def _follow(self, source: Source, known: Bundle, early: Answers) -> Chain:
        def fetch(path: str, max_bytes: int) -> bytes:
            answer = early.get(path)
            if answer is None:
                return trio.from_thread.run(partial(source.get, path, max_bytes=max_bytes)).data
            if isinstance(answer, CvfsError):
                raise answer
            if len(answer) > max_bytes:
                raise TooLargeError(f"{source.url}/{path}", f"more than {max_bytes} bytes")
            return answer

        _check_not_a_web_page(early.get(names.TIMESTAMP), source.url)
        try:
            chain = await trio.to_thread.run_sync(_follow_chain, known, fetch, self._now())
        except TrustError as error:
            raise type(error)(f"cannot trust what {source.url} has: {error}") from error
        self._check_name(chain.repository)
        return chain

    def _check_name(self, name: str) -> None:
        wanted = self._pin.name or (self.head.trusted.repository if self.head else name)
        if name != wanted:
            raise TrustError(f"{self._url} serves {name!r} where {wanted!r} is wanted")

    async def _complete(self, news: _News, deadline_s: float) -> Head:
        """The head that a verified chain leads to; the manifest is asked for if it is a new one."""
        signed = news.chain.manifest
        plain = self.head.trusted.manifest.encode() if self.head else b""
        if not signed.matches(plain):
            self._offer(signed.blob, news.early)
            plain = unseal(signed.blob, await self._mirrors.fetch_blob(signed.blob, deadline_s), self._url)
        if not signed.matches(plain):
            raise FormatError(f"the targets of {self._url} contradict themselves about the manifest")
        manifest = self._decode(plain)
        if manifest.repository != news.chain.repository:
            raise TrustError(f"{self._url} serves {manifest.repository!r} with the root of {news.chain.repository!r}")
        self._offer(manifest.root, news.early)
        return Head(manifest, make_trusted(news.chain, plain, self._origin(), news.root_ids, news.etag))

    def _offer(self, ref: BlobRef, early: Answers) -> None:
        """Spare the fetch of a blob that is signed, if it has come already and is what it should be."""
        stored = early.get(blob_path(ref.id))
        if isinstance(stored, bytes):
            with suppress(IntegrityError):
                check(ref, stored, self._url)
                self._mirrors.offer(ref, stored)

    def _decode(self, plain: bytes) -> Manifest:
        try:
            return decode_manifest(plain)
        except FormatError as error:
            raise FormatError(f"cannot read the repository at {self._url}: {error}") from error

    def _origin(self) -> str:
        """Whence the trust is, for people: what the user says now goes before what was said earlier."""
        if self.head is not None and (self._pin.is_empty or self._pin.first_use):
            return self.head.trusted.origin
        return self._pin.origin


def state_key(url: str) -> str:
    """The name below which the state of the repository at `url` is kept: legible, and different for each address."""
    legible = re.sub(r"[^A-Za-z0-9.-]+", "-", url.partition("://")[2]).strip("-.")[:80]
    return f"{legible or 'root'}-{hashlib.sha256(os.fsencode(url)).hexdigest()[:12]}"


def _follow_chain(known: Bundle, fetch: Callable[[str, int], bytes], now_s: float) -> Chain:
    from cvfs.trust.chain import follow  # late: it takes 50-130 ms, and here is a thread

    return follow(known, fetch, now_s)


def _load(directory: Path, pin: Pin) -> tuple[Trusted | None, ConfigError | None]:
    """What was trusted before. Damaged, it is done without only where the pin says where to begin anew."""
    try:
        state.check_owner(directory)
    except ConfigError as error:
        return None, error
    try:
        trusted = state.load(directory)
        if trusted is not None:
            decode_manifest(trusted.manifest.encode())
    except (OSError, FormatError) as error:
        problem = f"cannot use what was trusted before, in {directory / state.FILE}: {error}"
        if pin.sha256 is None:
            return None, ConfigError(f"{problem}; say with --root or --root-sha256 where trust begins")
        log.warning("%s", problem)
        return None, None
    return trusted, None


def _admitted(trusted: Trusted | None, pin: Pin) -> Head | None:
    if trusted is None or not pin.admits(trusted):
        return None
    return Head(decode_manifest(trusted.manifest.encode()), trusted)


def _no_repository(error: StatusError, url: str) -> CvfsError:
    return ConfigError(f"no repository at {url}: it has no {names.TIMESTAMP} ({error.reason})")


def _check_not_a_web_page(early: bytes | CvfsError | None, url: str) -> None:
    if isinstance(early, bytes) and early.lstrip()[:1] == b"<":
        raise TrustError(f"no repository at {url}: it serves a web page (HTML or XML) instead of {names.TIMESTAMP}")
