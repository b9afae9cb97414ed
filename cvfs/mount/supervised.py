"""What a worker of a supervised mount does: all that the supervisor does not."""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import trio

from cvfs.errors import CvfsError
from cvfs.filesystem import FileSystem
from cvfs.format.manifest import decode_manifest, encode_manifest
from cvfs.fuse.kernel import open_device
from cvfs.fuse.link import LISTENER, Message
from cvfs.fuse.orders import Orders
from cvfs.fuse.worker import Worker, take_away
from cvfs.model import Manifest
from cvfs.mount.client import Client, open_repository, single
from cvfs.mount.control import Answers, serve_control
from cvfs.mount.logs import Recent, setup_logging
from cvfs.mount.point import prepare_mount_point
from cvfs.mount.refresh import Refresher
from cvfs.mount.request import MountRequest
from cvfs.mount.runtime import Runtime
from cvfs.mount.served import ServedMount
from cvfs.mount.worker import lock

log = logging.getLogger(__name__)

_SWITCHED_S: Final = 2.0
"""For the other workers to follow a switch: each does so in its loop, at once."""

_SWITCH_S: Final = 0.0005
"""How long a thread that decompresses or hashes may keep the interpreter from the loop; Python's own 5 ms would be
felt in each request."""


def work(request: MountRequest, connection: socket.socket, leave: Callable[[], None]) -> None:
    """Be one worker from start to end. A mount that cannot be made is said to the supervisor.

    `leave()` is called when the mount can be used: then the group of who asked for it may be left.
    """
    recent = setup_logging()
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
    """One worker's repository, control socket and channel, put together."""

    def __init__(self, request: MountRequest, orders: Orders, recent: Recent, leave: Callable[[], None]) -> None:
        self._request, self._orders, self._recent, self._leave = request, orders, recent, leave
        self._runtime = Runtime(request.settings.runtime)
        self._switched, self._all_switched = 0, trio.Event()

    async def serve(self) -> None:
        request, orders = self._request, self._orders
        if orders.is_first:
            self._runtime.prepare()
            os.close(open_device())
            take_away(request.directory, orders.state.get("device"))  # a mount that the kernel could not save
            prepare_mount_point(request.directory, nonempty=request.nonempty)
        known = orders.state.get("manifest")
        manifest = decode_manifest(known.encode()) if known else None
        async with open_repository(request.url, request.settings, request.revision, manifest) as client:
            with contextlib.ExitStack() as until_started:
                if orders.is_first:
                    until_started.callback(os.close, await lock(self._runtime))
                    self._prepare(client)
                await self._serve(client, until_started)

    def _prepare(self, client: Client) -> None:
        """What the first worker of a mount leaves to all others."""
        directory = self._request.directory
        prepare_mount_point(directory, nonempty=self._request.nonempty)
        if LISTENER in self._orders.descriptors:
            return
        listener = self._runtime.listen(directory)
        manifest = encode_manifest(client.repository.manifest).decode()
        state = {"manifest": manifest, "unlink": [str(self._runtime.socket_of(directory))]}
        self._orders.hold({LISTENER: listener.detach()}, **state)

    async def _serve(self, client: Client, until_started: contextlib.ExitStack) -> None:
        orders, request = self._orders, self._request
        mount = ServedMount(client, request, self._recent, "channel")
        mount.pid = orders.supervisor
        mount.started_s = orders.state.get("started_s", mount.started_s)
        filesystem = mount.filesystem
        worker = Worker(filesystem, request.directory, mount.options(), orders)
        refresher = self._refresher(client, filesystem, worker)
        mount.statistics = lambda: self._statistics(worker, refresher)
        self._handle_orders(filesystem)

        def started() -> None:
            self._leave()
            until_started.close()
            what = mount.announce()
            orders.remember(started_s=mount.started_s)
            orders.say("started", what=what, warnings=[event.message for event in self._recent.events])

        async with trio.open_nursery() as nursery:
            if orders.slot == 0:
                answers: Answers = {"status": mount.status, "reload": self._reload}
                if request.revision is None:
                    answers = {**answers, "refresh": refresher.request}
                nursery.start_soon(self._answer, answers)
                nursery.start_soon(self._refresh, refresher)
            await worker.serve(started)
            nursery.cancel_scope.cancel()
        if orders.state.get("unmounted"):
            log.info("unmounted %s", request.directory)

    async def _answer(self, answers: Answers) -> None:
        listener = socket.socket(fileno=os.dup(self._orders.descriptors[LISTENER]))
        listener.setblocking(False)
        await serve_control(trio.SocketListener(trio.socket.from_stdlib_socket(listener)), answers)

    def _refresher(self, client: Client, filesystem: FileSystem, worker: Worker) -> Refresher:
        orders = self._orders

        async def announce(new: Manifest, old: Manifest) -> None:
            """To the supervisor, for workers to come, and to the other workers, which switch too."""
            text = encode_manifest(new).decode()
            orders.remember(manifest=text, previous=encode_manifest(old).decode())
            if orders.count > 1:
                self._switched, self._all_switched = 0, trio.Event()
                orders.say("relay", message={"type": "switch", "manifest": text})
                with trio.move_on_after(_SWITCHED_S):
                    await self._all_switched.wait()

        settled = partial(orders.remember, previous=None)
        return Refresher(client, filesystem, self._request, worker.invalidate, announce, settled)

    async def _refresh(self, refresher: Refresher) -> None:
        previous = self._orders.state.get("previous")
        if previous:
            await refresher.finish(decode_manifest(previous.encode()))
        await refresher.run()

    def _handle_orders(self, filesystem: FileSystem) -> None:
        def switch(order: Message) -> None:
            filesystem.switch(filesystem.repository.at(decode_manifest(order["manifest"].encode())))
            self._orders.say("relay", message={"type": "switched"})

        def switched(order: Message) -> None:
            self._switched += 1
            if self._switched == self._orders.count - 1:
                self._all_switched.set()

        self._orders.handlers = {"switch": switch, "switched": switched}

    def _reload(self) -> dict[str, Any]:
        self._orders.problem = ""
        self._orders.say("reload")
        return {"generation": self._orders.generation}

    def _statistics(self, worker: Worker, refresher: Refresher) -> dict[str, Any]:
        orders, counts = self._orders, worker.statistics
        return {
            "workers": orders.count,
            "generation": orders.generation,
            "restarts": orders.restarts,
            "reload_problem": orders.problem,
            "refreshes": refresher.count,
            "refresh_problem": refresher.problem,
            "switching": bool(orders.state.get("previous")),
            "requests": counts.by_name(),
            "requests_waited": counts.waited,
            "requests_failed": counts.failed,
            "requests_interrupted": counts.interrupted,
            "replies_refused": counts.refused,
        }
