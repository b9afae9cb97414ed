"""Which revision is current: the head that the mirrors have, held against the one that was good before.

The last good head is kept in the state directory, outside the cache, which may be wiped. It is what a client without
a network goes on with, and what no mirror can take it back from: to an older revision, or to another repository.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from cvfs.errors import ConfigError, CvfsError, FormatError, IntegrityError, StatusError, TrustError
from cvfs.format.blob import unseal
from cvfs.format.manifest import HEAD, decode_manifest
from cvfs.limits import MAX_MANIFEST_BYTES
from cvfs.mirrors import Mirrors
from cvfs.model import Manifest

log = logging.getLogger(__name__)

MAX_STEPS_BACK = 10_000
"""Revisions that are walked through in search of an older one, a request for each."""


@dataclass(frozen=True, slots=True)
class Head:
    """The current revision. `problem` says why it could not be had from a mirror, and is empty if it was."""

    manifest: Manifest
    problem: str = ""


class Heads:
    """The head of the repository at `url`, asked from `mirrors`, remembered in `directory`.

    `verify` makes a manifest of the bytes of a head, or refuses them with FormatError or TrustError.
    """

    def __init__(
        self,
        mirrors: Mirrors,
        url: str,
        directory: Path,
        *,
        verify: Callable[[bytes], Manifest] = decode_manifest,
    ) -> None:
        self._mirrors, self._url, self._verify = mirrors, url, verify
        self._file = directory / HEAD
        self._etag: str | None = None
        self.known = self._load()
        """The last good manifest, None before there was any."""
        self.problem = ""
        """Why the last question to the mirrors had no good answer; empty if it had one."""

    async def current(self, deadline_s: float, known_deadline_s: float | None = None) -> Head:
        """The head, within `deadline_s`; the known one if the mirrors have none that is good within `known_deadline_s`.

        Raises TrustError if the address now has another repository; without a known head also TransportError, and
        FormatError or ConfigError for what is no repository. Always a checkpoint; cancelled: nothing changed.
        """
        try:
            manifest = await self._ask(known_deadline_s if self.known and known_deadline_s else deadline_s)
        except TrustError:
            raise
        except CvfsError as error:
            self.problem = str(error)
            if self.known is None:
                raise
            log.warning("%s: going on with revision %d, known before", error, self.known.revision)
            return Head(self.known, self.problem)
        self.problem = ""
        return Head(manifest)

    async def _ask(self, deadline_s: float) -> Manifest:
        try:
            response = await self._mirrors.fetch_head(
                HEAD, max_bytes=MAX_MANIFEST_BYTES, etag=self._etag, deadline_s=deadline_s
            )
        except StatusError as error:
            raise (_no_repository(error, self._url) if error.status in (404, 410) else error) from error
        if response.not_modified and self.known is not None:
            return self.known
        manifest = self._judge(response.data)
        self._etag = response.etag
        if manifest != self.known:
            self.known = manifest
            await trio.to_thread.run_sync(self._store, response.data)
        return manifest

    def _judge(self, data: bytes) -> Manifest:
        """The manifest that `data` is, if it may follow the known one."""
        if data.lstrip()[:1] == b"<":
            raise FormatError(f"no repository at {self._url}: it serves a web page (HTML or XML) instead of {HEAD}")
        try:
            manifest = self._verify(data)
        except FormatError as error:
            raise FormatError(f"cannot read the repository at {self._url}: {error}") from error
        if self.known is not None:
            _check_succession(self.known, manifest, self._url, self._file.parent)
        return manifest

    def _load(self) -> Manifest | None:
        try:
            return self._verify(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, CvfsError) as error:
            log.warning("cannot use the remembered head %s: %s", self._file, error)
            return None

    def _store(self, data: bytes) -> None:
        """Remember a good head: whole or not at all. Failing that, only a restart would notice."""
        temporary = self._file.with_name(f".new-{os.getpid()}")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._file)
        except OSError as error:
            log.warning("cannot remember the head in %s: %s", self._file, error.strerror)


def state_key(url: str) -> str:
    """The name below which the state of the repository at `url` is kept: legible, and different for each address."""
    legible = re.sub(r"[^A-Za-z0-9.-]+", "-", url.partition("://")[2]).strip("-.")[:80]
    return f"{legible or 'root'}-{hashlib.sha256(os.fsencode(url)).hexdigest()[:12]}"


async def find_revision(newest: Manifest, number: int, mirrors: Mirrors, deadline_s: float) -> Manifest:
    """Revision `number`, found by walking back from `newest`; every step is named by a hash in the one before.

    Raises ConfigError if there is no such revision, and what `Mirrors.fetch_blob` does.
    """
    manifest = newest
    for _ in range(MAX_STEPS_BACK):
        if manifest.revision == number:
            return manifest
        if manifest.revision < number or manifest.parent is None:
            break
        stored = await mirrors.fetch_blob(manifest.parent, deadline_s)
        parent = decode_manifest(unseal(manifest.parent, stored, "a mirror"))
        if parent.revision >= manifest.revision or parent.repository != newest.repository:
            raise FormatError(f"revision {manifest.revision} of {newest.repository} names a parent that cannot be one")
        manifest = parent
    raise ConfigError(f"{newest.repository} has no revision {number} within reach; the newest is {newest.revision}")


def _no_repository(error: StatusError, url: str) -> CvfsError:
    return ConfigError(f"no repository at {url}: it has no {HEAD} ({error.reason})")


def _check_succession(known: Manifest, new: Manifest, url: str, directory: Path) -> None:
    """Raise unless `new` may follow `known`."""
    if new.repository != known.repository:
        raise TrustError(
            f"{url} serves {new.repository!r}, but was {known.repository!r} before: use another address, "
            f"or remove {directory} if that is right"
        )
    if new.revision < known.revision:
        raise IntegrityError(f"revision {known.revision} or newer", f"revision {new.revision}", url)
    if new.revision == known.revision and new != known:
        raise IntegrityError(f"the revision {known.revision} known before", "another one of that number", url)
