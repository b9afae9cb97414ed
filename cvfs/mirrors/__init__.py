"""Many mirrors of one repository, by many proxies, and all retries there are.

`health` and `plan` decide, without I/O: time and dice are arguments. `network` is what all repositories of a process
share: who answers, how fast. `Mirrors` acts for one of them. A server that has failed for a while is left alone until
the network's watch has found it back (the breaker): meanwhile reads of what is not cached fail at once.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import trio

from cvfs.errors import IntegrityError, TransportError, TrustError, UnreachableError
from cvfs.format import blob
from cvfs.mirrors.health import FetchError
from cvfs.mirrors.network import Network, by_proxy, describe
from cvfs.mirrors.plan import Mirror, Plan, Route, Try, Wait
from cvfs.model import BlobRef
from cvfs.transport import Response, Transport

__all__ = ["FetchError", "Mirrors", "Network", "Source"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

OTHER_OPINION = 5
"""Each so many questions of `consult` begin with another mirror: one that is stuck at an old revision is found out."""


class Source:
    """One mirror, for one course of questions to it that together end `deadline_s` after it was made."""

    def __init__(self, transport: Transport, step: Try) -> None:
        self._transport, self._route, self._fresh = transport, step.route, step.fresh
        self.url = step.route.mirror.url
        self._deadline = time.monotonic() + step.deadline_s

    async def get(self, name: str, *, max_bytes: int, etag: str | None = None) -> Response:
        """The mutable file `name`, unless it is still what `etag` names. Nothing of it is verified.

        Raises TransportError, IntegrityError. Always a checkpoint; cancelled: nothing is left behind.
        """
        return await self._transport.get(
            f"{self.url}/{name}",
            max_bytes=max_bytes,
            etag=etag,
            deadline_s=max(0.0, self._deadline - time.monotonic()),
            fresh=self._fresh,
            proxy=self._route.proxy.address,
        )


class Mirrors:
    """The mirrors of one repository, the preferred one first until their distance is known, asked through `transport`.

    Raises ConfigError: no address, or one that cannot be used.
    """

    def __init__(self, network: Network, base_urls: Sequence[str], transport: Transport | None = None) -> None:
        self.network = network
        self._transport, self._clock = transport or network.transport, network.clock
        self._routes = network.routes(base_urls)
        self._used: Route | None = None
        self._early: tuple[BlobRef, bytes] | None = None
        self._questions = int(network.dice() * OTHER_OPINION)
        self._opinions = 0

    async def fetch_blob(self, ref: BlobRef, deadline_s: float) -> bytes:
        """The stored bytes that `ref` names; their size and hash have been checked, in the worker thread.

        Raises TransportError or IntegrityError, that of the last try, `deadline_s` from now at the latest, and at once
        while no mirror answers. Always a checkpoint; cancelled: nothing is left behind.
        """
        early, self._early = self._early, None
        if early is not None and early[0] == ref:
            await trio.lowlevel.checkpoint()
            return early[1]
        get = partial(
            self._transport.get,
            max_bytes=ref.stored_size,
            exact_bytes=ref.stored_size,
            check=partial(blob.check, ref),
        )
        name = blob.blob_path(ref.id)

        def ask(step: Try) -> Awaitable[Response]:
            url, proxy = f"{step.route.mirror.url}/{name}", step.route.proxy.address
            return get(url, deadline_s=step.deadline_s, fresh=step.fresh, proxy=proxy)

        return (await self._attempt(ask, deadline_s)).data

    def offer(self, ref: BlobRef, stored: bytes) -> None:
        """Bytes that came before they were asked for, and have been checked: if the next fetch is for `ref`, they are
        its answer."""
        self._early = ref, stored

    async def consult(self, work: Callable[[Source], Awaitable[T]], deadline_s: float) -> T:
        """What `work` makes of one mirror, or of another if it raises TransportError, IntegrityError or TrustError.

        For what is more than one file, or can be judged only by the caller. Raises the error of the last try; anything
        else that `work` raises ends it at once. Cancelled: nothing is left behind.
        """

        def ask(step: Try) -> Awaitable[T]:
            return work(Source(self._transport, step))

        return await self._attempt(ask, deadline_s, self._choose_opinion())

    @property
    def used(self) -> str | None:
        """The address of the mirror that answered last."""
        return self._used.mirror.url if self._used else None

    def status(self) -> dict[str, Any]:
        """What `cvfs status` shows of mirrors and proxies: those in use, all others, and how they are."""
        return describe(self._routes, self._used, self._clock())

    def _choose_opinion(self) -> Mirror | None:
        """The mirror to be asked first, if it is not the preferred one's turn."""
        others = sorted(self._routes.mirrors, key=lambda mirror: mirror.rank)[1:]
        self._questions += 1
        if not others or self._used is None or self._questions % OTHER_OPINION:
            return None
        self._opinions += 1
        return others[self._opinions % len(others)]

    async def _attempt(self, ask: Callable[[Try], Awaitable[T]], deadline_s: float, first: Mirror | None = None) -> T:
        plan = Plan(self._routes.ways, self._clock() + deadline_s, first)
        while step := plan.decide(self._clock()):
            if isinstance(step, Wait):
                await trio.sleep(step.delay_s)
                continue
            try:
                return await self._try(step, ask)
            except (TransportError, IntegrityError, TrustError) as error:
                level = logging.WARNING if isinstance(error, IntegrityError) else logging.DEBUG
                _log.log(level, "%s%s", error, by_proxy(step.route))
                plan.record_failure(step.route, error, self._clock(), self.network.dice())
                self.network.disturb()
        await trio.lowlevel.checkpoint()
        raise plan.error or self._refuse()

    async def _try(self, step: Try, ask: Callable[[Try], Awaitable[T]]) -> T:
        route = step.route
        route.begin(self._clock())
        try:
            answer = await ask(step)
        except (TransportError, IntegrityError, TrustError):
            raise
        except BaseException:
            route.abandon()
            raise
        self._used = route
        self.network.succeed(route)
        return answer

    def _refuse(self) -> UnreachableError:
        """The error for a fetch that asked nobody: all breakers are open, or its deadline had passed before."""
        healths = [health for way in self._routes.ways for health in (way.proxy.health, way.health)]
        last = next((health.last_error for health in healths if health.failing and health.last_error), None)
        reason = f"not asked: no mirror answers ({last.reason})" if last else "not asked: no time was left"
        return UnreachableError(self._routes.mirrors[0].url, reason)
