"""A mount that is being served: what it says of itself, and what is done beside answering the kernel."""

import logging
import os
import stat
import time
from collections.abc import Callable
from typing import Any

import msgspec

import cvfs
from cvfs.cache import Cache
from cvfs.errors import MountError
from cvfs.fuse.options import MountOptions
from cvfs.mount.freshness import trust_status
from cvfs.mount.logs import RecentWarnings
from cvfs.mount.member import Member
from cvfs.mount.mounted import Mounted
from cvfs.mount.refreshers import Refreshers
from cvfs.mount.request import MountRequest, may_allow_other

log = logging.getLogger(__name__)

_HOUR_S = 3600.0


class ServedMount:
    """One mount, and what it says of itself."""

    def __init__(
        self, mounted: Mounted, cache: Cache, request: MountRequest, recent: RecentWarnings, engine: str
    ) -> None:
        self._mounted, self._cache, self._request, self._recent = mounted, cache, request, recent
        self._engine = engine
        self.started_s = time.time()
        self.pid = os.getpid()
        """The process whose end is the end of the mount."""
        self.refreshers: Refreshers | None = None
        self.statistics: Callable[[], dict[str, Any]] = dict
        """What the engine knows, under names of its own."""

    def status(self) -> dict[str, Any]:
        """What `cvfs status` shows. Units are in the names; times in seconds since 1970 UTC.

        What is said of a repository that is mounted alone stands among the rest; of many, below "repositories".
        """
        request = self._request
        return {
            "mountpoint": str(request.directory),
            "url": self._mounted.source,
            **self._repositories_status(),
            "engine": self._engine,
            "pid": self.pid,
            "worker_pid": os.getpid(),
            "version": cvfs.__version__,
            "started_s": self.started_s,
            "uptime_s": time.time() - self.started_s,
            "log": _log_target(),
            "cache": self._cache_status(),
            **self.statistics(),
            "errors": self._recent.errors,
            "errors_last_hour": self._recent.errors_since(time.time() - _HOUR_S),
            "warnings": self._recent.warnings,
            "events": [event._asdict() for event in self._recent.events],
        }

    def _repositories_status(self) -> dict[str, Any]:
        members = self._mounted.members()
        if not self._request.all:
            return member_status(members[0], self.refreshers)
        about = self.refreshers
        return {
            "repositories": [member_status(member, about) for member in members],
            "refreshes": about.count() if about else 0,
            "refresh_problem": about.problem() if about else "",
        }

    def _cache_status(self) -> dict[str, Any]:
        directory = self._cache.directory
        return {"directory": str(directory.path), "writable": directory.writable, **self._cache.quota.status()}

    def options(self) -> MountOptions:
        request, settings = self._request, self._request.settings
        allow_other = may_allow_other() if settings.allow_other is None else settings.allow_other
        if allow_other and not may_allow_other():
            raise MountError("only root may allow others into a mount, unless /etc/fuse.conf says user_allow_other")
        return MountOptions(
            request.source or self._mounted.source,
            allow_other=allow_other,
            suid=settings.suid,
            dev=settings.dev,
            executable=settings.exec,
            invalidation=request.invalidation,
            is_fleeting=settings.strict_freshness,
        )

    def announce(self) -> str:
        """Log that the mount can be used; what it is."""
        directory = self._request.directory
        if self._request.all:
            count = len(self._mounted.members())
            what = f"{count} {'repository' if count == 1 else 'repositories'} on {directory}"
            log.info("mounted %s", what)
            return what
        opened = self._mounted.members()[0].opened
        assert opened is not None
        manifest = opened.filesystem.repository.manifest
        what = f"revision {manifest.revision} of {manifest.repository} on {directory}"
        log.info("mounted %s from %s", what, self._mounted.source)
        return what


def member_status(member: Member, refreshers: Refreshers | None) -> dict[str, Any]:
    """What is said of one repository. "state" of what is not open is "unused", or "failed" with its problem."""
    named = {"name": member.label} if member.label else {}
    opened = member.opened
    if opened is None:
        state = {"state": "failed", "problem": str(member.failure)} if member.failure else {"state": "unused"}
        return {**named, **state, **_refresh_status(member, refreshers)}
    client, manifest = opened.client, opened.filesystem.repository.manifest
    return {
        **named,
        "url": client.url,
        "repository": manifest.repository,
        "revision": manifest.revision,
        "pinned": opened.site.revision is not None,
        "pinned_to": None if opened.site.revision is None else str(opened.site.revision),
        "published_s": manifest.published_s,
        "trust": trust_status(client.heads),
        "offline": bool(client.heads.problem),
        "problem": client.heads.problem,
        "fetcher": msgspec.structs.asdict(client.fetcher.counters),
        "transport": msgspec.structs.asdict(client.transport.statistics()),
        "network": client.mirrors.status(),
        **_refresh_status(member, refreshers),
    }


def _refresh_status(member: Member, refreshers: Refreshers | None) -> dict[str, Any]:
    if refreshers is None:
        return {}
    return {
        "refreshes": refreshers.count(member.label),
        "refresh_problem": refreshers.problem(member.label),
        "switching": refreshers.is_switching(member.label),
    }


def _log_target() -> str:
    """What standard error is: the name of the log file, or of the kind of thing it goes to."""
    try:
        is_file = stat.S_ISREG(os.fstat(2).st_mode)
        return os.readlink("/proc/self/fd/2") if is_file else "standard error"
    except OSError:
        return ""
