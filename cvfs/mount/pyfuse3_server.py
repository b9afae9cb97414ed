"""A mount served by one process, from the first check to a clean end: that of the pyfuse3 engine."""

import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

import trio

from cvfs.errors import CvfsError, MountError
from cvfs.filesystem import View
from cvfs.fuse.held import remove_files
from cvfs.fuse.kernel import open_device
from cvfs.fuse.mountinfo import find_mount_of
from cvfs.fuse.options import MountOptions
from cvfs.heap import keep_freed_memory
from cvfs.model import Manifest
from cvfs.mount.client import open_ground, single
from cvfs.mount.control import Answers, Control
from cvfs.mount.daemon import Caller
from cvfs.mount.exporter import export
from cvfs.mount.followers import PendingSwitch, nobody
from cvfs.mount.logs import RecentWarnings, setup_logging
from cvfs.mount.mounted import Mounted, mounted_by
from cvfs.mount.notify import notify
from cvfs.mount.point import is_ours, prepare_mount_point
from cvfs.mount.refreshers import Refreshers, refresh_answer
from cvfs.mount.request import MountRequest, decode_request
from cvfs.mount.runtime import Runtime
from cvfs.mount.shown import Shown
from cvfs.mount.status import ServedMount

log = logging.getLogger(__name__)

Ready = Callable[[], None]
Engine = Callable[[View, Path, MountOptions, Callable[[], None]], Awaitable[None]]


def serve(text: str, caller: Caller) -> int:
    """Serve the mount that `text` asks for, a MountRequest in JSON, to its end; the exit status.

    It ends when it is unmounted, and with SIGTERM and SIGINT. Nothing is left behind however it ends.
    """
    recent = setup_logging(json.loads(text)["settings"]["log_format"])
    try:
        _run(decode_request(text), recent, lambda: caller.report(recent.texts()))
    except CvfsError as error:
        caller.fail(str(error))
    except BaseException:
        log.exception("the mount ended with an unexpected error")
        caller.fail("unexpected error, please report it: the traceback is in the log")
    else:
        return 0
    return 1


def _run(request: MountRequest, recent: RecentWarnings, ready: Ready) -> None:
    keep_freed_memory()
    try:
        trio.run(_serve, request, recent, ready)
    except BaseExceptionGroup as group:
        raise single(group) from None
    finally:
        notify("STOPPING=1")


async def _serve(request: MountRequest, recent: RecentWarnings, ready: Ready) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_signal, nursery.cancel_scope)
        runtime = Runtime(request.settings.runtime)
        runtime.prepare()
        engine = _load_engine()
        prepare_mount_point(request.directory, nonempty=request.nonempty)
        shown = Shown(None)
        async with open_ground(request.settings) as ground:
            mounted = mounted_by(request, ground, shown)
            await mounted.start()
            mount = ServedMount(mounted, ground.cache, request, recent, "pyfuse3")
            await _serve_mount(mount, mounted, shown, request, engine, runtime, ready)
        nursery.cancel_scope.cancel()


def _load_engine() -> Engine:
    """Raises MountError if FUSE or the engine is not there."""
    os.close(open_device())
    try:
        from cvfs.fuse import pyfuse3_engine
    except ImportError as error:
        raise MountError(f"this engine needs pyfuse3 (pip install 'cvfs[pyfuse3]'): {error}") from None
    return pyfuse3_engine.serve


async def _cancel_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("%s: unmounting", signal.Signals(number).name)
            scope.cancel()


async def _serve_mount(
    mount: ServedMount,
    mounted: Mounted,
    shown: Shown,
    request: MountRequest,
    engine: Engine,
    runtime: Runtime,
    ready: Ready,
) -> None:
    from cvfs.fuse.pyfuse3_engine import invalidate

    with contextlib.ExitStack() as until_started, contextlib.ExitStack() as until_ended:
        until_started.callback(os.close, await runtime.lock())
        prepare_mount_point(request.directory, nonempty=request.nonempty)
        held = until_ended.enter_context(_HeldSocket(runtime, request.directory))
        control = Control(runtime, request.directory, held.is_mounted, held.hold)

        def started() -> None:
            until_started.close()
            until_ended.callback(log.info, "unmounted %s", request.directory)
            what = mount.announce()
            ready()
            notify("READY=1", f"STATUS=serving {what}")

        async with trio.open_nursery() as nursery:
            mount.refreshers = Refreshers(mounted, shown, invalidate, _announce, nursery, control.look)
            answers: Answers = {"status": lambda _: mount.status(), **refresh_answer(request, mount.refreshers)}
            control.take(held.listener.fileno())
            nursery.start_soon(control.serve, answers)
            nursery.start_soon(mount.refreshers.run)
            if request.settings.metrics:
                nursery.start_soon(export, request.settings.metrics, runtime)
            await engine(mounted.view, request.directory, mount.options(), started)
            nursery.cancel_scope.cancel()


async def _announce(label: str, manifest: Manifest) -> PendingSwitch:
    """There is no other worker."""
    await trio.lowlevel.checkpoint()
    return nobody()


class _HeldSocket:
    """A listening socket for as long as the mount is served: the one that was made last."""

    def __init__(self, runtime: Runtime, directory: Path) -> None:
        self._runtime, self._directory = runtime, directory
        self.listener = runtime.listen(directory)
        self._unlink: dict[str, int | None] = {}

    def __enter__(self) -> Self:
        self._know()
        return self

    def __exit__(self, *_: object) -> None:
        remove_files(self._unlink)
        self._close()

    def hold(self, listener: socket.socket) -> None:
        """This one instead of what has no name any more."""
        self._close()
        self.listener = listener
        with contextlib.suppress(MountError):  # it has been removed again: the next look finds that
            self._know()

    def is_mounted(self) -> bool:
        found = find_mount_of(self._directory)
        return found is not None and found.directory == self._directory and is_ours(found)

    def _know(self) -> None:
        path, inode = self._runtime.identity_of(self._directory)
        self._unlink = {str(path): inode}

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
