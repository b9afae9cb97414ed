"""Earlier revisions of a repository: by number, by tag, by date. Each is reached by hashes from a head that is signed.

What was found is kept beside the trusted state, so that a mount of an old revision needs no server to start again. It
is verified whenever it is read, as if it had come from a mirror.
"""

import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from cvfs.errors import ConfigError, FormatError, IntegrityError, StatusError
from cvfs.format.blob import check, unseal
from cvfs.format.history import Compare, check_step, next_step
from cvfs.format.manifest import decode_manifest
from cvfs.format.tags import Tags, decode_tags
from cvfs.heads import Head
from cvfs.limits import MAX_TAGS_BYTES
from cvfs.mirrors import Mirrors
from cvfs.model import Ancestor, BlobRef, Manifest
from cvfs.trust import names
from cvfs.trust.targets import find_target
from cvfs.which import Which, show_date

log = logging.getLogger(__name__)

_KEPT = 64
"""Documents that are kept for one repository; a mount that stays at a revision needs three or four."""

_SHOWN = 20
"""Tags that an error names."""

_GONE = (403, 404, 410)


class Revisions(msgspec.Struct, frozen=True):
    """The revisions that `mirrors` have; documents of them are kept in `directory`, which belongs to the repository.
    Without `remembers`, those that are there are used, and none are added."""

    mirrors: Mirrors
    directory: Path
    remembers: bool = True

    async def find(self, head: Head, which: Which, deadline_s: float) -> Manifest:
        """The manifest of the revision that `which` means.

        Raises ConfigError: there is none; TrustError, FormatError: what is signed does not hang together; and what
        `Mirrors.fetch_blob` does. Always a checkpoint.
        """
        deadline = trio.current_time() + deadline_s
        if which.tag is not None:
            return await self._tagged(head, which.tag, deadline)
        if which.number is not None:
            return await self._numbered(head.manifest, which.number, deadline)
        assert which.date_s is not None
        return await self._dated(head.manifest, which.date_s, deadline)

    async def tags(self, head: Head, deadline_s: float) -> Tags:
        """All tags, by name. Raises as `find` does."""
        return await self._tags(head, trio.current_time() + deadline_s)

    async def _tagged(self, head: Head, name: str, deadline: float) -> Manifest:
        tags = await self._tags(head, deadline)
        found = tags.get(name)
        repository = head.manifest.repository
        if found is None:
            raise ConfigError(f"{repository} has no tag {name!r}: {_list(tags)}")
        manifest = await self._manifest(found, deadline)
        said = repository, found.revision, found.published_s
        if (manifest.repository, manifest.revision, manifest.published_s) != said:
            raise FormatError(f"the tag {name!r} of {repository} is not the revision that it says")
        return manifest

    async def _tags(self, head: Head, deadline: float) -> Tags:
        signed = find_target(head.trusted.targets.encode(), names.TAGS, MAX_TAGS_BYTES)
        if signed is None:
            await trio.lowlevel.checkpoint()
            return {}
        plain = await self._plain(signed.blob, deadline)
        if not signed.matches(plain):
            raise FormatError(f"the targets of {head.manifest.repository} contradict themselves about the tags")
        return decode_tags(plain)

    async def _numbered(self, newest: Manifest, number: int, deadline: float) -> Manifest:
        manifest = await self._walk(newest, lambda each: each.revision - number, deadline)
        if manifest.revision != number:
            what = f"the newest is {newest.revision}" if number > newest.revision else "it is not kept any more"
            raise ConfigError(f"{newest.repository} has no revision {number}: {what}")
        return manifest

    async def _dated(self, newest: Manifest, date_s: int, deadline: float) -> Manifest:
        manifest = await self._walk(newest, lambda each: 1 if each.published_s > date_s else -1, deadline)
        if manifest.published_s > date_s:
            first = f"revision {manifest.revision} is of {show_date(manifest.published_s)}"
            raise ConfigError(f"{newest.repository} has nothing of {show_date(date_s)} or before: {first}")
        return manifest

    async def _walk(self, newest: Manifest, compare: Compare, deadline: float) -> Manifest:
        """The last revision that is not later than the wanted one; the first one if all are."""
        manifest = newest
        await trio.lowlevel.checkpoint()
        while compare(Ancestor(manifest.revision, manifest.published_s, manifest.root)) > 0:
            step = next_step(manifest, compare)
            if step is None:
                break
            found = await self._manifest(step, deadline)
            check_step(manifest, found, step)
            manifest = found
        return manifest

    async def _manifest(self, ancestor: Ancestor, deadline: float) -> Manifest:
        try:
            return decode_manifest(await self._plain(ancestor.manifest, deadline))
        except StatusError as error:
            if error.status in _GONE:
                raise ConfigError(f"revision {ancestor.revision} is not kept any more ({error})") from error
            raise

    async def _plain(self, ref: BlobRef, deadline: float) -> bytes:
        stored = await trio.to_thread.run_sync(_load, self.directory / "kept", ref)
        if stored is None:
            stored = await self.mirrors.fetch_blob(ref, deadline - trio.current_time())
            if self.remembers:
                await trio.to_thread.run_sync(_keep, self.directory / "kept", ref, stored)
        return unseal(ref, stored, "a mirror")


def _load(directory: Path, ref: BlobRef) -> bytes | None:
    path = directory / ref.id.hex()
    try:
        with open(path, "rb") as file:
            stored = file.read(ref.stored_size + 1)
        check(ref, stored, str(path))
    except (OSError, IntegrityError):
        return None
    with suppress(OSError):  # a directory that cannot be written to is good enough to read from
        os.utime(path)
    return stored


def _keep(directory: Path, ref: BlobRef, stored: bytes) -> None:
    """Durable enough: what a crash tears is fetched again."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = directory / f".{ref.id.hex()}-{os.getpid()}-{time.monotonic_ns()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(stored)
        temporary.rename(directory / ref.id.hex())
        _forget_old(directory)
    except OSError as error:
        log.warning("cannot keep what was found of an old revision in %s: %s", directory, error.strerror)


def _forget_old(directory: Path) -> None:
    """Those that were used longest ago, and what a dead process left."""
    with os.scandir(directory) as entries:
        by_age = sorted(entries, key=lambda entry: entry.stat(follow_symlinks=False).st_mtime_ns, reverse=True)
    for entry in by_age[_KEPT:]:
        with suppress(FileNotFoundError):
            os.unlink(entry.path)


def _list(tags: Iterable[str]) -> str:
    """What there is, for an error."""
    found = sorted(tags)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"there are {', '.join(found[:_SHOWN])}{more}" if found else "there are no tags"
