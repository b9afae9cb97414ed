"""A mount that is being served: what it says of itself, and what is done beside answering the kernel."""

import contextlib
import logging
import os
import stat
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import cvfs
from cvfs.errors import MountError
from cvfs.filesystem import FileSystem
from cvfs.fuse.options import MountOptions
from cvfs.mount.appearance import appearance_of
from cvfs.mount.client import Client
from cvfs.mount.freshness import StrictFileSystem, trust_status
from cvfs.mount.logs import Recent
from cvfs.mount.request import MountRequest, may_allow_other

log = logging.getLogger(__name__)

_HOUR_S = 3600.0


class ServedMount:
    """One mount of an open repository, and what it says of itself."""

    def __init__(self, client: Client, request: MountRequest, recent: Recent, engine: str) -> None:
        self._client, self._request, self._recent = client, request, recent
        self._engine = engine
        strict = request.settings.strict_freshness
        repository, heads = client.repository, client.heads
        appearance = appearance_of(request.settings)
        self.filesystem = (
            StrictFileSystem(repository, heads, appearance) if strict else FileSystem(repository, appearance)
        )
        self.started_s = time.time()
        self.pid = os.getpid()
        """The process whose end is the end of the mount."""
        self.statistics: Callable[[], dict[str, Any]] = dict
        """What the engine knows, under names of its own."""

    def status(self) -> dict[str, Any]:
        """What `cvfs status` shows. Units are in the names; times in seconds since 1970 UTC."""
        manifest, request = self.filesystem.repository.manifest, self._request
        return {
            "mountpoint": str(request.directory),
            "url": self._client.url,
            "repository": manifest.repository,
            "revision": manifest.revision,
            "pinned": request.revision is not None,
            "published_s": manifest.published_s,
            "trust": trust_status(self._client.heads),
            "offline": bool(self._client.heads.problem),
            "problem": self._client.heads.problem,
            "engine": self._engine,
            "pid": self.pid,
            "worker_pid": os.getpid(),
            "version": cvfs.__version__,
            "started_s": self.started_s,
            "uptime_s": time.time() - self.started_s,
            "log": _log_target(),
            "cache": self._cache_status(),
            "fetcher": asdict(self._client.fetcher.counters),
            "transport": asdict(self._client.transport.statistics()),
            "network": self._client.mirrors.status(),
            **self.statistics(),
            "errors": self._recent.errors,
            "errors_last_hour": self._recent.errors_since(time.time() - _HOUR_S),
            "warnings": self._recent.warnings,
            "events": [asdict(event) for event in self._recent.events],
        }

    def _cache_status(self) -> dict[str, Any]:
        directory = self._client.cache.directory
        free_bytes = None
        with contextlib.suppress(OSError):
            space = os.statvfs(directory.path)
            free_bytes = space.f_bavail * space.f_frsize
        return {"directory": str(directory.path), "writable": directory.writable, "free_bytes": free_bytes}

    def options(self) -> MountOptions:
        request, settings = self._request, self._request.settings
        allow_other = may_allow_other() if settings.allow_other is None else settings.allow_other
        if allow_other and not may_allow_other():
            raise MountError("only root may allow others into a mount, unless /etc/fuse.conf says user_allow_other")
        return MountOptions(
            request.source or self._client.url,
            allow_other=allow_other,
            suid=settings.suid,
            dev=settings.dev,
            executable=settings.exec,
            invalidation=request.invalidation,
            is_fleeting=settings.strict_freshness,
        )

    def announce(self) -> str:
        """Log that the mount can be used; what it is."""
        manifest = self.filesystem.repository.manifest
        what = f"revision {manifest.revision} of {manifest.repository} on {self._request.directory}"
        log.info("mounted %s from %s", what, self._client.url)
        return what


def _log_target() -> str:
    """What standard error is: the name of the log file, or of the kind of thing it goes to."""
    try:
        is_file = stat.S_ISREG(os.fstat(2).st_mode)
        return os.readlink("/proc/self/fd/2") if is_file else "standard error"
    except OSError:
        return ""
