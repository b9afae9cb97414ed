"""One question to the mirrors for the newest head, and all that has to be verified of the answer.

A question that brings no news is one conditional request, and needs nothing of python-tuf.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from cvfs.bootstrap import EarlyAnswers, Opening, ask_ahead, check_not_a_web_page, open_source
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
from cvfs.heads.kept import Head
from cvfs.mirrors import Mirrors, Source
from cvfs.model import BlobRef, Manifest
from cvfs.trust import names
from cvfs.trust.anchor import Anchor
from cvfs.trust.state import Trusted, make_trusted
from cvfs.trust.values import Bundle, Chain, root_id

_LEAST_S = 1.0
"""For the manifest, when the metadata has taken all the time there was."""


class _News(NamedTuple):
    """A chain that is not the known one, the ids of all roots that it rests on, and what else came from its mirror."""

    chain: Chain
    root_ids: tuple[str, ...]
    etag: str | None
    early: EarlyAnswers


class Question(msgspec.Struct):
    """What the mirrors of the repository at `url` have that is newer than `known`.

    Without a `known` head it begins where `anchor` says, and takes nothing older than what was trusted `before` another
    root was pinned. `etag` is what a mirror called the known timestamp; it changes when one calls it otherwise.
    """

    mirrors: Mirrors
    url: str
    anchor: Anchor
    now: Callable[[], float]
    known: Head | None
    before: Trusted | None
    etag: str | None

    async def ask(self, deadline_s: float) -> Head | None:
        """The new head; None if the known one is the newest.

        Raises TrustError, TransportError, IntegrityError, FormatError, and ConfigError where there is no repository.
        Always a checkpoint; cancelled: nothing is left behind.
        """
        deadline = time.monotonic() + deadline_s
        try:
            news = await self.mirrors.consult(self._verify, deadline_s)
        except StatusError as error:
            raise (_no_repository(error, self.url) if error.status in (404, 410) else error) from error
        return None if news is None else await self._complete(news, max(_LEAST_S, deadline - time.monotonic()))

    async def _verify(self, source: Source) -> _News | None:
        """What one mirror has, verified down to the targets; None if that is what is known."""
        if self.known is None:
            opening = await open_source(source, self.anchor.root, self.anchor)
            chain = await self._follow(source, self._begin(opening), opening.early)
            return _News(chain, (root_id(opening.root), *chain.new_root_ids), opening.etag, opening.early)
        known = self.known.trusted
        is_expired = self.now() >= known.expires_s
        etag = None if is_expired else self.etag  # a server whose ETags are wrong must not freeze it for longer
        response = await source.get(names.TIMESTAMP, max_bytes=names.MAX_TIMESTAMP_BYTES, etag=etag)
        if response.not_modified or response.data == known.timestamp.encode():
            if is_expired:
                raise ExpiredError(f"{source.url} has nothing newer than what has expired")
            self.etag = response.etag
            return None
        early = await ask_ahead(source, response.data, known.root_version, known.timestamp.encode())
        chain = await self._follow(source, known.bundle, early)
        return _News(chain, known.root_ids + chain.new_root_ids, response.etag, early)

    def _begin(self, opening: Opening) -> Bundle:
        """What to hold the first answers against: a root, and what was trusted before another root was pinned."""
        before = self.before
        if before is None or before.repository != opening.repository:
            return Bundle(opening.root)
        return msgspec.structs.replace(before.bundle, root=opening.root)

    async def _follow(self, source: Source, known: Bundle, early: EarlyAnswers) -> Chain:
        def fetch(path: str, max_bytes: int) -> bytes:
            answer = early.get(path)
            if answer is None:
                return trio.from_thread.run(partial(source.get, path, max_bytes=max_bytes)).data
            if isinstance(answer, CvfsError):
                raise answer
            if len(answer) > max_bytes:
                raise TooLargeError(f"{source.url}/{path}", f"more than {max_bytes} bytes")
            return answer

        timestamp = early.get(names.TIMESTAMP)
        if isinstance(timestamp, bytes):
            check_not_a_web_page(timestamp, source.url, names.TIMESTAMP)
        try:
            chain = await trio.to_thread.run_sync(_follow_chain, known, fetch, self.now())
        except TrustError as error:
            raise type(error)(f"cannot trust what {source.url} has: {error}") from error
        self._check_name(chain.repository)
        return chain

    def _check_name(self, name: str) -> None:
        wanted = self.anchor.name or (self.known.trusted.repository if self.known else name)
        if name != wanted:
            raise TrustError(f"{self.url} serves {name!r} where {wanted!r} is wanted")

    async def _complete(self, news: _News, deadline_s: float) -> Head:
        """The head that a verified chain leads to; the manifest is asked for if it is a new one."""
        signed = news.chain.manifest
        plain = self.known.trusted.manifest.encode() if self.known else b""
        if not signed.matches(plain):
            self._offer(signed.blob, news.early)
            plain = unseal(signed.blob, await self.mirrors.fetch_blob(signed.blob, deadline_s), self.url)
        if not signed.matches(plain):
            raise FormatError(f"the targets of {self.url} contradict themselves about the manifest")
        manifest = self._decode(plain)
        if manifest.repository != news.chain.repository:
            raise TrustError(f"{self.url} serves {manifest.repository!r} with the root of {news.chain.repository!r}")
        self._offer(manifest.root, news.early)
        return Head(manifest, make_trusted(news.chain, plain, self._origin(), news.root_ids, news.etag))

    def _offer(self, ref: BlobRef, early: EarlyAnswers) -> None:
        """Spare the fetch of a blob that is signed, if it has come already and is what it should be."""
        stored = early.get(blob_path(ref.id))
        if isinstance(stored, bytes):
            with suppress(IntegrityError):
                check(ref, stored, self.url)
                self.mirrors.offer(ref, stored)

    def _decode(self, plain: bytes) -> Manifest:
        try:
            return decode_manifest(plain)
        except FormatError as error:
            raise FormatError(f"cannot read the repository at {self.url}: {error}") from error

    def _origin(self) -> str:
        """Whence the trust is, for people: what the user says now goes before what was said earlier."""
        if self.known is not None and (self.anchor.is_empty or self.anchor.first_use):
            return self.known.trusted.origin
        return self.anchor.origin


def _follow_chain(known: Bundle, fetch: Callable[[str, int], bytes], now_s: float) -> Chain:
    from cvfs.trust.chain import follow  # late: it takes 50-130 ms, and here is a thread

    return follow(known, fetch, now_s)


def _no_repository(error: StatusError, url: str) -> CvfsError:
    return ConfigError(f"no repository at {url}: it has no {names.TIMESTAMP} ({error.reason})")
