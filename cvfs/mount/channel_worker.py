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
from cvfs.format.manifest import decode_manifest
from cvfs.fuse.cpus import keep_to_share
from cvfs.fuse.kernel import open_device
from cvfs.fuse.link import LISTENER, Message
from cvfs.fuse.mountinfo import is_mounted
from cvfs.fuse.orders import Orders
from cvfs.fuse.removal import is_to_be_made_anew, take_away
from cvfs.fuse.worker import Worker
from cvfs.mount import counting
from cvfs.mount.client import Ground, open_ground, single
from cvfs.mount.control import Answers, Control
from cvfs.mount.counting import Counting
from cvfs.mount.exporter import export
from cvfs.mount.followers import Followers
from cvfs.mount.logs import RecentWarnings, setup_logging
from cvfs.mount.member import Member, Opened
from cvfs.mount.mounted import Mounted, follow, mounted_by
from cvfs.mount.point import prepare_mount_point
from cvfs.mount.refresher import Invalidate
from cvfs.mount.refreshers import Refreshers, refresh_answer
from cvfs.mount.request import MountRequest
from cvfs.mount.runtime import Runtime
from cvfs.mount.shown import Shown
from cvfs.mount.status import ServedMount

log = logging.getLogger(__name__)

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
    keep_to_share(orders.slot, orders.count)
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

    def __init__(
        self, request: MountRequest, orders: Orders, recent: RecentWarnings, leave: Callable[[], None]
    ) -> None:
        self._request, self._orders, self._recent, self._leave = request, orders, recent, leave
        self._runtime = Runtime(request.settings.runtime)

    async def serve(self) -> None:
        request, orders = self._request, self._orders
        if orders.is_first:
            self._runtime.prepare()
            os.close(open_device())
            if orders.state.get("mounted") and not self._is_to_go_on(*orders.state["mounted"]):
                return
            prepare_mount_point(request.directory, nonempty=request.nonempty)
        shown = Shown(Path(orders.state["shown"]) if "shown" in orders.state else None)
        async with open_ground(request.settings) as ground:
            mounted = mounted_by(request, ground, shown)
            await mounted.start()
            with contextlib.ExitStack() as until_started:
                if orders.is_first:
                    until_started.callback(os.close, await self._runtime.lock())
                    self._prepare(shown)
                await self._serve(mounted, ground, shown, until_started)

    def _is_to_go_on(self, point: str, device: str) -> bool:
        """Take away a mount that the kernel could not save. False: it is not to be made anew."""
        take_away(point, device, at_once=True)
        if is_mounted(Path(point), device) or is_to_be_made_anew(point):
            return True
        log.warning("the mount on %s is gone, and not ours to make anew", point)
        self._orders.remember(unmounted=True)
        self._orders.say("unmounted")
        return False

    def _prepare(self, shown: Shown) -> None:
        """What the first worker of a mount leaves to all others."""
        directory = self._request.directory
        prepare_mount_point(directory, nonempty=self._request.nonempty)
        if LISTENER in self._orders.descriptors:
            return
        self._hold(self._runtime.listen(directory), shown)

    def _hold(self, listener: socket.socket, shown: Shown) -> None:
        """Have the control socket, and what is shown, outlive this worker and go with the mount."""
        directory, orders = self._request.directory, self._orders
        path, inode = self._runtime.identity_of(directory)
        shown_in = self._runtime.shown_of(directory, orders.supervisor)
        if LISTENER not in orders.descriptors or not shown_in.exists():
            shown.attach(shown_in)
        others = *shown.files(), *counting.files(shown_in, orders.count)
        unlink = {str(path): inode} | {str(file): None for file in others}
        orders.hold({LISTENER: listener.detach()}, shown=str(shown_in), unlink=unlink)

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
            orders.say("started", what=what, warnings=self._recent.texts())

        async with trio.open_nursery() as nursery:
            counts = Counting(Path(orders.state["shown"]), orders.slot, orders.count, mount.status, self._tell_others)
            orders.handlers = {
                "switch": partial(self._switch, mounted),
                "count": counts.answer,
                "names": lambda _: nursery.start_soon(mounted.reload),
                "anew": lambda order: mounted.forget(order["label"]),
            }
            if orders.slot == 0:
                self._lead(mount, mounted, shown, counts, worker.invalidate, nursery)
            else:
                mounted.on_open = partial(self._tell_of, shown)
                mounted.on_anew = lambda label: self._tell_others({"type": "anew", "label": label})
            await worker.serve(started)
            nursery.cancel_scope.cancel()
        if orders.state.get("unmounted"):
            log.info("unmounted %s", request.directory)

    def _lead(
        self,
        mount: ServedMount,
        mounted: Mounted,
        shown: Shown,
        counts: Counting,
        invalidate: Invalidate,
        nursery: trio.Nursery,
    ) -> None:
        """What one worker does for all: ask for new revisions, and answer who asks about the mount."""
        orders, request = self._orders, self._request
        followers = Followers(orders, nursery)
        control = Control(self._runtime, request.directory, self._is_mounted, partial(self._hold_anew, shown))
        refreshers = Refreshers(mounted, shown, invalidate, followers.announce, nursery, control.look)
        mount.refreshers, refreshers.tell_others = refreshers, self._tell_others
        orders.handlers |= {
            "relayed": followers.receive_receipt,
            "switched": followers.receive_confirmation,
            "counts": counts.take,
            "opened": lambda order: refreshers.adopt(order["label"]),
            "anew": partial(self._begin_anew, mounted, refreshers),
            "listen": partial(self._take_listener, control),
        }
        answers: Answers = {"status": lambda _: counts.whole_status(), "reload": self._reload}
        answers = {**answers, **refresh_answer(request, refreshers)}
        control.take(orders.descriptors[LISTENER])
        nursery.start_soon(control.serve, answers)
        nursery.start_soon(refreshers.run)
        if request.settings.metrics:
            nursery.start_soon(export, request.settings.metrics, self._runtime)

    def _begin_anew(self, mounted: Mounted, refreshers: Refreshers, order: Message) -> None:
        """Another worker was the first to see that a repository may be another now."""
        mounted.forget(order["label"])
        refreshers.anew(order["label"])

    def _is_mounted(self) -> bool:
        point, device = self._orders.state.get("mounted") or ("/", "")
        return is_mounted(Path(point), device)

    def _hold_anew(self, shown: Shown, listener: socket.socket) -> None:
        """The control socket before has no name any more, so nobody can ask by it."""
        before = self._orders.descriptors[LISTENER]
        try:
            self._hold(listener, shown)
        except CvfsError as error:  # it has been removed again: the next look finds that
            log.warning("%s", error)
            listener.close()
        else:
            os.close(before)

    def _take_listener(self, control: Control, order: Message) -> None:
        """Whose place this worker takes has made the control socket anew, after this one was begun with that before."""
        orders, listener = self._orders, order["descriptors"][LISTENER]
        os.close(orders.descriptors[LISTENER])
        orders.descriptors[LISTENER] = listener
        control.take(listener)
        with contextlib.suppress(CvfsError):  # it has been removed again: the next look finds that
            path, inode = self._runtime.identity_of(self._request.directory)
            orders.state["unlink"] = {**orders.state["unlink"], str(path): inode}

    def _tell_others(self, message: Message) -> None:
        self._orders.say("relay", message=message)

    def _switch(self, mounted: Mounted, order: Message) -> None:
        """Say who has, for there may be two workers of a slot: one that begins, and one that ends."""
        manifest = decode_manifest(order["manifest"].encode())
        member = mounted.member(order["label"])
        if member is not None and member.opened is not None:
            filesystem = member.opened.filesystem
            if manifest.revision >= filesystem.repository.manifest.revision:  # else one has been overtaken by another
                filesystem.switch(filesystem.repository.at(manifest))
        about = {"label": order["label"], "revision": manifest.revision}
        self._tell_others({"type": "switched", "pid": os.getpid(), **about})

    def _tell_of(self, shown: Shown, member: Member, opened: Opened) -> None:
        """The first worker keeps new what any has opened. It may have switched while this one was being opened."""
        follow(shown, member.label, opened.filesystem)
        self._tell_others({"type": "opened", "label": member.label})

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
