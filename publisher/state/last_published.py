"""What this host has published last, so that it notices a store that was rolled back beneath it.

A store put back from an old backup is signed as it should be; only who remembers more can tell. Its next revision
would take a number that clients have seen on another, and they would refuse it, or worse.
"""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from cvfs.errors import StoreError, TrustError
from cvfs.trust import names
from cvfs.trust.values import root_id
from publisher.repository.head import Head, Mark
from publisher.repository.history import find_revision
from publisher.state.directory import make_state_directory
from publisher.store import Store

_FILE = "published.json"

_LEAP = 10_000
"""Versions passed over after a rollback that was accepted: whatever else was signed since, on whatever host, they
are above it. A guess, and a number costs nothing."""


class LastPublished:
    """What is remembered in a state directory, by the store's identity: the hash of its first root."""

    def __init__(self, state: Path, store: Store) -> None:
        """Raises StoreError."""
        self._path = state / _FILE
        self._store = store
        self._identity = root_id(store.get_metadata(names.metadata_path("root", 1), names.MAX_ROOT_BYTES))
        self._known = self._read()

    def check(self, head: Head, *, accept: bool = False) -> Head:
        """The head, if it is what is remembered or follows from it. Otherwise TrustError; or, if it is to `accept`, a
        head whose next versions are above all that clients may have seen."""
        before = self._known.get(self._identity)
        if before is None or self._follows(head, before):
            return head
        if accept:
            return head._replace(passed_over=max(before.targets, before.timestamp) + _LEAP)
        raise TrustError(
            f"the store {self._store.location} was rolled back: this host knows another revision {before.revision} of "
            f"it, and its newest is {head.manifest.revision}. Put back its data/ and metadata/ from a mirror; or use "
            "--accept-rollback, and what was published since is lost"
        )

    def keep(self, seen: Mark, warn: Callable[[str], None]) -> None:
        """Remember `seen`, which was published a moment ago, from now on. If that fails, it is published none the less:
        `warn` is told."""
        self._known[self._identity] = seen
        temporary = self._path.with_name(f".{_FILE}-{os.getpid()}")
        try:
            make_state_directory(self._path.parent)
            temporary.write_bytes(msgspec.json.encode(self._known))
            temporary.rename(self._path)
        except OSError as error:
            warn(
                f"revision {seen.revision} is published, but this host cannot remember it: "
                f"cannot keep state in {self._path}: {error.strerror} (choose with --state DIR)"
            )

    def _read(self) -> dict[str, Mark]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Mark])
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StoreError(f"cannot read {self._path}: {error.strerror}") from error
        except msgspec.DecodeError:
            return {}  # Torn by a crash, say. It is a second look at what signatures prove already.

    def _follows(self, head: Head, before: Mark) -> bool:
        now = head.mark
        if now.revision < before.revision or now.targets < before.targets or now.timestamp < before.timestamp:
            return False
        then = find_revision(self._store, head.manifest, head.blob, before.revision)
        return then.manifest.id.hex() == before.manifest
