"""The process that serves one mount, from the first check to a clean end."""

import contextlib
import logging
import os
import random
import signal
import socket
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

import cvfs
from cvfs.errors import CvfsError, MountError
from cvfs.filesystem import FileSystem
from cvfs.fuse.kernel import open_device
from cvfs.fuse.options import MountOptions
from cvfs.mount.client import Client, open_repository, single
from cvfs.mount.control import serve_control
from cvfs.mount.logs import Recent
from cvfs.mount.notify import notify
from cvfs.mount.point import prepare_mount_point
from cvfs.mount.request import MountRequest, may_allow_other
from cvfs.mount.runtime import Runtime

log = logging.getLogger(__name__)

Engine = Callable[[FileSystem, Path, MountOptions, Callable[[], None]], Awaitable[None]]

LOCK_DEADLINE_S = 15.0
"""For another mount of this user to be finished: longer than any takes that fails."""

_RETRY_S = (5.0, 60.0)
_HOUR_S = 3600.0


def run_mount(request: MountRequest, recent: Recent, ready: Callable[[], None]) -> None:
    """Mount, call `ready` once the mount can be used, serve until it is unmounted or SIGTERM or SIGINT comes.

    Nothing is left behind however it ends. Raises CvfsError if it cannot be mounted.
    """
    try:
        trio.run(_serve, request, recent, ready)
    except BaseExceptionGroup as group:
        raise single(group) from None
    finally:
        notify("STOPPING=1")


async def _serve(request: MountRequest, recent: Recent, ready: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_signal, nursery.cancel_scope)
        runtime = Runtime(request.settings.runtime)
        runtime.prepare()
        engine = _load_engine(request.engine)
        prepare_mount_point(request.directory, nonempty=request.nonempty)
        async with open_repository(request.url, request.settings, request.revision) as client:
            await _Mount(client, request, recent).serve(engine, runtime, ready)
        nursery.cancel_scope.cancel()


def _load_engine(name: str) -> Engine:
    """Raises MountError if FUSE or the engine is not there."""
    os.close(open_device())
    try:
        from cvfs.fuse import pyfuse3_engine
    except ImportError as error:
        raise MountError(f"the engine {name} needs pyfuse3 (pip install 'cvfs[pyfuse3]'): {error}") from None
    return pyfuse3_engine.serve


async def _cancel_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("%s: unmounting", signal.Signals(number).name)
            scope.cancel()


class _Mount:
    """One mount of an open repository, and what it says of itself."""

    def __init__(self, client: Client, request: MountRequest, recent: Recent) -> None:
        self._client, self._request, self._recent = client, request, recent
        self._started_s = time.time()

    async def serve(self, engine: Engine, runtime: Runtime, ready: Callable[[], None]) -> None:
        with contextlib.ExitStack() as until_started, contextlib.ExitStack() as until_ended:
            until_started.callback(os.close, await _lock(runtime))
            prepare_mount_point(self._request.directory, nonempty=self._request.nonempty)
            listener = until_ended.enter_context(_control_socket(runtime, self._request.directory))

            def started() -> None:
                until_started.close()
                until_ended.callback(log.info, "unmounted %s", self._request.directory)
                self._announce(ready)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_control, trio.SocketListener(listener), {"status": self.status})
                nursery.start_soon(self._ask_again_while_offline)
                await engine(FileSystem(self._client.repository), self._request.directory, self._options(), started)
                nursery.cancel_scope.cancel()

    def status(self) -> dict[str, Any]:
        """What `cvfs status` shows. Units are in the names; times in seconds since 1970 UTC."""
        manifest, request = self._client.repository.manifest, self._request
        return {
            "mountpoint": str(request.directory),
            "url": self._client.url,
            "repository": manifest.repository,
            "revision": manifest.revision,
            "pinned": request.revision is not None,
            "published_s": manifest.published_s,
            "offline": bool(self._client.heads.problem),
            "problem": self._client.heads.problem,
            "engine": "pyfuse3",
            "pid": os.getpid(),
            "version": cvfs.__version__,
            "started_s": self._started_s,
            "uptime_s": time.time() - self._started_s,
            "log": _log_target(),
            "cache": self._cache_status(),
            "fetcher": asdict(self._client.fetcher.counters),
            "transport": asdict(self._client.transport.statistics()),
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

    def _options(self) -> MountOptions:
        request = self._request
        allow_other = may_allow_other() if request.allow_other is None else request.allow_other
        if allow_other and not may_allow_other():
            raise MountError("only root may allow others into a mount, unless /etc/fuse.conf says user_allow_other")
        return MountOptions(self._client.url, allow_other=allow_other, suid=request.suid, dev=request.dev)

    def _announce(self, ready: Callable[[], None]) -> None:
        manifest = self._client.repository.manifest
        what = f"revision {manifest.revision} of {manifest.repository} on {self._request.directory}"
        log.info("mounted %s from %s", what, self._client.url)
        ready()
        notify("READY=1", f"STATUS=serving {what}")

    async def _ask_again_while_offline(self) -> None:
        """A server that was away when the mount was made, and has come back, is told of."""
        wait_s, longest_s = _RETRY_S
        while self._client.heads.problem:
            await trio.sleep(wait_s * (0.75 + random.random() / 2))
            wait_s = min(wait_s * 2, longest_s)
            try:
                head = await self._client.heads.current(self._request.settings.known_deadline_s)
            except CvfsError as error:
                log.warning("%s", error)
                continue
            if not head.problem:
                log.info("%s answers again, with revision %d", self._client.url, head.manifest.revision)


async def _lock(runtime: Runtime) -> int:
    """Be the only process of this user that mounts; the descriptor to close afterwards."""
    with trio.move_on_after(LOCK_DEADLINE_S):
        while True:
            descriptor = runtime.try_lock()
            if descriptor is not None:
                return descriptor
            await trio.sleep(0.01)
    raise MountError(f"another mount is being made for {LOCK_DEADLINE_S:g} s already; see `cvfs status`")


@contextlib.contextmanager
def _control_socket(runtime: Runtime, directory: Path) -> Iterator[trio.socket.SocketType]:
    """A listening socket for as long as the mount is served."""
    listener = runtime.listen(directory)
    try:
        yield trio.socket.from_stdlib_socket(listener)
    finally:
        runtime.socket_of(directory).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _log_target() -> str:
    """What standard error is: the name of the log file, or of the kind of thing it goes to."""
    try:
        is_file = stat.S_ISREG(os.fstat(2).st_mode)
        return os.readlink("/proc/self/fd/2") if is_file else "standard error"
    except OSError:
        return ""
