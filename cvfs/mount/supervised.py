"""What a worker of a supervised mount does: all that the supervisor does not."""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from cvfs.errors import CvfsError
from cvfs.format.manifest import decode_manifest, encode_manifest
from cvfs.fuse.kernel import open_device
from cvfs.fuse.link import LISTENER, Message
from cvfs.fuse.mounting import take_away
from cvfs.fuse.orders import Orders
from cvfs.fuse.worker import Worker
from cvfs.model import Manifest
from cvfs.mount.client import Ground, open_ground, single
from cvfs.mount.control import Answers, serve_control
from cvfs.mount.exporter import export
from cvfs.mount.logs import Recent, setup_logging
from cvfs.mount.member import Member, Opened
from cvfs.mount.mounted import Mounted, follow, mounted_by
from cvfs.mount.point import prepare_mount_point
from cvfs.mount.refreshing import Refreshing, refresh_answer
from cvfs.mount.request import MountRequest
from cvfs.mount.runtime import Runtime
from cvfs.mount.served import ServedMount
from cvfs.mount.shown import Shown
from cvfs.mount.sums import Counts, counts_of, with_counts
from cvfs.mount.worker import lock

log = logging.getLogger(__name__)

_SWITCHED_S: Final = 2.0
"""For the other workers to follow a switch: each does so in its loop, at once."""

_COUNTED_S: Final = 0.5
"""For the other workers to say what they have counted: who asks for the status has little patience."""

_SWITCH_S: Final = 0.0005
"""How long a thread that decompresses or hashes may keep the interpreter from the loop; Python's own 5 ms would be
felt in each request."""


def work(request: MountRequest, connection: socket.socket, leave: Callable[[], None]) -> None:
    """Be one worker from start to end. A mount that cannot be made is said to the supervisor.

    `leave()` is called when the mount can be used: then the group of who asked for it may be left.
    """
    recent = setup_logging(request.settings.log_format)
    sys.setswitchinterval(_SWITCH_S)
    orders = Orders(connection)
    try:
        try:
            trio.run(_Assembly(request, orders, recent, leave).serve)
        except BaseExceptionGroup as group:
            raise single(group) from None
    except CvfsError as error:
        orders.say("failed", error=str(error))
        sys.exit(1)


class _Assembly:
    """One worker's repositories, control socket and channel, put together."""

    def __init__(self, request: MountRequest, orders: Orders, recent: Recent, leave: Callable[[], None]) -> None:
        self._request, self._orders, self._recent, self._leave = request, orders, recent, leave
        self._runtime = Runtime(request.settings.runtime)
        self._announcing = trio.Lock()
        self._unswitched: set[tuple[int, str]] = set()
        self._all_switched = trio.Event()
        self._counts: dict[int, Counts] = {}
        self._silent: set[int] = set()
        self._all_counted = trio.Event()

    async def serve(self) -> None:
        request, orders = self._request, self._orders
        if orders.is_first:
            self._runtime.prepare()
            os.close(open_device())
            take_away(request.directory, orders.state.get("device"))  # a mount that the kernel could not save
            prepare_mount_point(request.directory, nonempty=request.nonempty)
        shown = Shown(Path(orders.state["shown"]) if "shown" in orders.state else None)
        async with open_ground(request.settings) as ground:
            mounted = mounted_by(request, ground, shown)
            await mounted.start()
            with contextlib.ExitStack() as until_started:
                if orders.is_first:
                    until_started.callback(os.close, await lock(self._runtime))
                    self._prepare(shown)
                await self._serve(mounted, ground, shown, until_started)

    def _prepare(self, shown: Shown) -> None:
        """What the first worker of a mount leaves to all others."""
        directory = self._request.directory
        prepare_mount_point(directory, nonempty=self._request.nonempty)
        if LISTENER in self._orders.descriptors:
            return
        listener = self._runtime.listen(directory)
        path, inode = self._runtime.identity_of(directory)
        shown_in = self._runtime.shown_of(directory, self._orders.supervisor)
        shown.attach(shown_in)
        unlink = {str(path): inode} | {str(file): None for file in shown.files()}
        self._orders.hold({LISTENER: listener.detach()}, shown=str(shown_in), unlink=unlink)

    async def _serve(self, mounted: Mounted, ground: Ground, shown: Shown, until_started: contextlib.ExitStack) -> None:
        orders, request = self._orders, self._request
        mount = ServedMount(mounted, ground.cache, request, self._recent, "channel")
        mount.pid = orders.supervisor
        mount.started_s = orders.state.get("started_s", mount.started_s)
        worker = Worker(mounted.view, request.directory, mount.options(), orders)
        mount.statistics = lambda: self._statistics(worker)

        def started() -> None:
            self._leave()
            until_started.close()
            what = mount.announce()
            orders.remember(started_s=mount.started_s)
            orders.say("started", what=what, warnings=[event.message for event in self._recent.events])

        async with trio.open_nursery() as nursery:
            orders.handlers = {
                "switch": partial(self._switch, mounted),
                "switched": self._has_switched,
                "count": partial(self._count, mount),
                "counts": self._has_counted,
            }
            if orders.slot == 0:
                mount.refreshing = Refreshing(mounted, shown, worker.invalidate, self._announce, nursery)
                orders.handlers["opened"] = partial(_adopt, mount.refreshing)
                answers: Answers = {"status": partial(self._status, mount), "reload": self._reload}
                nursery.start_soon(self._answer, {**answers, **refresh_answer(request, mount.refreshing)})
                nursery.start_soon(mount.refreshing.run)
                if request.settings.metrics:
                    nursery.start_soon(export, request.settings.metrics, self._runtime)
            else:
                mounted.on_open = partial(self._tell_of, shown)
            await worker.serve(started)
            nursery.cancel_scope.cancel()
        if orders.state.get("unmounted"):
            log.info("unmounted %s", request.directory)

    async def _answer(self, answers: Answers) -> None:
        listener = socket.socket(fileno=os.dup(self._orders.descriptors[LISTENER]))
        listener.setblocking(False)
        await serve_control(trio.SocketListener(trio.socket.from_stdlib_socket(listener)), answers)

    async def _status(self, mount: ServedMount, _: Mapping[str, Any]) -> dict[str, Any]:
        """What this worker says, with what the others have counted, or had when they answered last."""
        if self._orders.count > 1:
            self._silent |= set(range(1, self._orders.count))
            if self._all_counted.is_set():
                self._all_counted = trio.Event()
            self._orders.say("relay", message={"type": "count"})
            with trio.move_on_after(_COUNTED_S):
                await self._all_counted.wait()
        return with_counts(mount.status(), self._counts.values())

    def _count(self, mount: ServedMount, _: Message) -> None:
        message = {"type": "counts", "slot": self._orders.slot, "counts": counts_of(mount.status())}
        self._orders.say("relay", message=message)

    def _has_counted(self, message: Message) -> None:
        """Harmless in a worker that has not asked."""
        self._counts[message["slot"]] = message["counts"]
        self._silent.discard(message["slot"])
        if not self._silent:
            self._all_counted.set()

    async def _announce(self, label: str, manifest: Manifest) -> None:
        """To the other workers, which switch too."""
        others = {(slot, label) for slot in range(1, self._orders.count)}
        async with self._announcing:
            if not others:
                return
            self._unswitched, self._all_switched = others, trio.Event()
            message = {"type": "switch", "label": label, "manifest": encode_manifest(manifest).decode()}
            self._orders.say("relay", message=message)
            with trio.move_on_after(_SWITCHED_S):
                await self._all_switched.wait()

    def _switch(self, mounted: Mounted, order: Message) -> None:
        member = mounted.member(order["label"])
        if member is not None and member.opened is not None:
            filesystem = member.opened.filesystem
            filesystem.switch(filesystem.repository.at(decode_manifest(order["manifest"].encode())))
        self._orders.say("relay", message={"type": "switched", "slot": self._orders.slot, "label": order["label"]})

    def _has_switched(self, order: Message) -> None:
        self._unswitched.discard((order["slot"], order["label"]))
        if not self._unswitched:
            self._all_switched.set()

    def _tell_of(self, shown: Shown, member: Member, opened: Opened) -> None:
        """The first worker keeps new what any has opened. It may have switched while this one was being opened."""
        follow(shown, member.label, opened.filesystem)
        self._orders.say("relay", message={"type": "opened", "label": member.label})

    def _reload(self, _: Mapping[str, Any]) -> dict[str, Any]:
        self._orders.problem = ""
        self._orders.say("reload")
        return {"generation": self._orders.generation}

    def _statistics(self, worker: Worker) -> dict[str, Any]:
        orders, counts = self._orders, worker.statistics
        return {
            "workers": orders.count,
            "generation": orders.generation,
            "restarts": orders.restarts,
            "reload_problem": orders.problem,
            "requests": counts.by_name(),
            "requests_waited": counts.waited,
            "requests_failed": counts.failed,
            "requests_interrupted": counts.interrupted,
            "replies_refused": counts.refused,
        }


def _adopt(refreshing: Refreshing, order: Message) -> None:
    refreshing.adopt(order["label"])
