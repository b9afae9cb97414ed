"""The head that was accepted last, as it is kept between one start and the next, outside the cache, which may be wiped.

It is what a client without a network goes on with, and what no mirror can take it back from.
"""

import hashlib
import logging
import os
import re
import time
from pathlib import Path

import msgspec
import trio

from cvfs.errors import ConfigError, FormatError
from cvfs.format.manifest import decode_manifest
from cvfs.model import Manifest
from cvfs.trust import state
from cvfs.trust.anchor import Anchor
from cvfs.trust.state import Trusted

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 1.0


class Head(msgspec.Struct, frozen=True):
    """A revision that is signed. `problem` says why nothing newer could be had, and is empty if a mirror answered."""

    manifest: Manifest
    trusted: Trusted
    problem: str = ""


class Kept:
    """What `directory` has of one repository, as far as `anchor` admits it."""

    def __init__(self, directory: Path, anchor: Anchor) -> None:
        self._directory, self._anchor = directory, anchor
        self.before, self.obstacle = _load(directory, anchor)
        """What was trusted at the start, if only by another anchor; what forbids to use anything of it."""
        self._looked_at = 0.0

    def head(self) -> Head | None:
        """The head that was kept at the start."""
        return self._admit(self.before)

    def look_again(self) -> Head | None:
        """The head that is kept now, maybe by another process; None also if that was looked up a moment ago."""
        if time.monotonic() < self._looked_at + _LOOK_AGAIN_S:
            return None
        self._looked_at = time.monotonic()
        return self._admit(_load(self._directory, self._anchor)[0])

    async def keep(self, head: Head) -> None:
        """Have `head` known after a restart. What stands in the way is only logged."""
        try:
            await trio.to_thread.run_sync(state.store, self._directory, head.trusted)
        except OSError as error:
            log.warning("cannot remember what is trusted in %s: %s", self._directory, error.strerror)

    def _admit(self, trusted: Trusted | None) -> Head | None:
        if trusted is None or not self._anchor.admits(trusted):
            return None
        return Head(decode_manifest(trusted.manifest.encode()), trusted)


def state_key(url: str) -> str:
    """The name below which the state of the repository at `url` is kept: legible, and different for each address."""
    legible = re.sub(r"[^A-Za-z0-9.-]+", "-", url.partition("://")[2]).strip("-.")[:80]
    return f"{legible or 'root'}-{hashlib.sha256(os.fsencode(url)).hexdigest()[:12]}"


def _load(directory: Path, anchor: Anchor) -> tuple[Trusted | None, ConfigError | None]:
    """What was trusted before. Damaged, it is done without only where the anchor says where to begin anew."""
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
        if anchor.sha256 is None:
            return None, ConfigError(f"{problem}; say with --root or --root-sha256 where trust begins")
        log.warning("%s", problem)
        return None, None
    return trusted, None
