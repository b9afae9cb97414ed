"""All servers and proxies that a process asks: what is known of them is shared by its repositories.

`Network.watch` runs beside the fetches. It asks what has failed whether it answers again, so that reads need not find
out, and measures what has alternatives, so that the nearest mirror is the preferred one.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import trio

from cvfs.errors import ConfigError, IntegrityError, TransportError
from cvfs.mirrors.health import PATIENCE_S, FetchError, Health
from cvfs.mirrors.plan import Mirror, Proxy, Route, preference
from cvfs.transport import (
    DIRECT,
    ENVIRONMENT,
    Transport,
    check_base_url,
    check_proxy,
    environment_proxy,
    origin_of,
)
from cvfs.trust import names

log = logging.getLogger(__name__)

MEASURE_S = 600.0
"""How often latencies are measured, give or take a quarter: 10,000 hosts ask a mirror 17 times a second for it."""

PROBE_DEADLINE_S = 5.0
LEISURE_S = 30.0
"""How often at most is asked whether something answers again while there is something else that does."""

# So much nearer has to be what takes the place of another: clients behind one proxy should prefer the same mirror.
_NEARER_FACTOR, _NEARER_S = 1.5, 0.01


class Routes:
    """The ways to the mirrors of one repository: every mirror by every proxy."""

    def __init__(self, mirrors: Sequence[Mirror], ways: Iterable[Route]) -> None:
        self.mirrors = mirrors
        self.ways = sorted(ways, key=preference)
        """In order of preference. Replaced, never changed: fetches look at it."""

    @property
    def is_stuck(self) -> bool:
        """Whether nothing is left that is known to answer."""
        return all(way.is_failing for way in self.ways)

    def reorder(self) -> None:
        """Prefer what is nearest, as far as that is known."""
        by_rank = sorted(self.mirrors, key=lambda mirror: mirror.rank)
        for rank, mirror in enumerate(by_distance(by_rank, self._latency_of)):
            if rank != mirror.rank:
                log.debug("mirror %s is now number %d", mirror.url, rank + 1)
            mirror.rank = rank
        self.ways = sorted(self.ways, key=preference)

    def _latency_of(self, mirror: Mirror) -> float | None:
        known = [way.health.latency_s for way in self.ways if way.mirror is mirror and way.health.latency_s is not None]
        return min(known, default=None)


def by_distance(mirrors: Sequence[Mirror], latency_of: Callable[[Mirror], float | None]) -> list[Mirror]:
    """`mirrors`, each behind all that are clearly nearer; what was not measured stays where it is."""
    order = list(mirrors)
    swapped = True
    while swapped:
        swapped = False
        for index, (one, other) in enumerate(pairwise(order)):
            ours, theirs = latency_of(one), latency_of(other)
            if ours is not None and theirs is not None and theirs * _NEARER_FACTOR + _NEARER_S < ours:
                order[index : index + 2] = [other, one]
                swapped = True
                break
    return order


class Network:
    """What a process knows of the servers and proxies it asks. `watch` asks through `transport`: a repository that has
    a sibling of that does not hold it up.

    `proxies` are groups of addresses, DIRECT among them; none at all: what the environment says. The members of a group
    share the load: each process has an order of its own. `patience_s` is for how long something that has answered
    before may fail until reads are refused at once. Raises ConfigError: an address that cannot be used.
    """

    def __init__(
        self,
        transport: Transport,
        proxies: Sequence[Sequence[str]] = (),
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.transport, self.clock, self.dice = transport, clock, dice
        self._patience_s = patience_s
        self.proxies = tuple(self._make_proxies(proxies or [[ENVIRONMENT]]))
        self.listeners: list[Callable[[], None]] = []
        """Called when something that had failed answers again."""
        # Both hold what a repository holds: names of repositories may lead to ever new servers.
        self._healths: WeakValueDictionary[tuple[str, Proxy], Health] = WeakValueDictionary()
        self._known: WeakSet[Routes] = WeakSet()
        self._measure_at = math.inf
        self._disturbed = trio.Event()

    def routes(self, base_urls: Iterable[str]) -> Routes:
        """The ways to the mirrors with these addresses. Raises ConfigError: none, or one that cannot be used."""
        mirrors = [Mirror(check_base_url(url), rank) for rank, url in enumerate(dict.fromkeys(base_urls))]
        if not mirrors:
            raise ConfigError("a repository needs the address of at least one mirror")
        made = Routes(mirrors, [self._route(mirror, proxy) for proxy in self.proxies for mirror in mirrors])
        self._known.add(made)
        if len({origin_of(mirror.url) for mirror in mirrors}) > 1:
            made.reorder()
            if any(way.health.latency_s is None for way in made.ways):
                self._measure_at = -math.inf
                self._disturbed.set()
        return made

    def succeed(self, route: Route) -> None:
        """A request by `route` was answered."""
        was_failing = route.is_failing
        route.record(None, self.clock(), self.dice())
        if was_failing:
            self._announce(route)

    def disturb(self) -> None:
        """A request has failed: have it looked at when it answers again."""
        self._disturbed.set()

    async def watch(self) -> None:
        """Look after what has failed, and measure, until cancelled. With one mirror that answers it sleeps."""
        async with trio.open_nursery() as nursery:
            while True:
                self._disturbed = trio.Event()
                now = self.clock()
                wake_up = self._probe_due(now, nursery)
                if now >= self._measure_at:
                    self._measure_at = now + MEASURE_S * (0.75 + self.dice() / 2)
                    nursery.start_soon(self._measure)
                with trio.move_on_after(min(wake_up, self._measure_at) - now):
                    await self._disturbed.wait()

    def _make_proxies(self, groups: Sequence[Sequence[str]]) -> Iterable[Proxy]:
        for number, group in enumerate(groups):
            for rank, address in enumerate(sorted(map(check_proxy, group), key=lambda _: self.dice())):
                yield Proxy(address, number, rank, Health(self._patience_s))

    def _route(self, mirror: Mirror, proxy: Proxy) -> Route:
        health = self._healths.setdefault((origin_of(mirror.url), proxy), Health(self._patience_s))
        return Route(mirror, proxy, health)

    def _probe_due(self, now: float, nursery: trio.Nursery) -> float:
        """Try what fails and is due, each server and each proxy once; when the next is."""
        wake_up = math.inf
        for routes in list(self._known):
            leisure_s = 0.0 if routes.is_stuck else LEISURE_S
            for way in routes.ways:
                # A proxy that fails hides what is behind it.
                health = way.proxy.health if way.proxy.health.failing else way.health
                if health.probe_at + leisure_s <= now:
                    health.probe_at = math.inf  # until there is a result
                    nursery.start_soon(self._probe, way)
                wake_up = min(wake_up, health.probe_at + leisure_s)
        return wake_up

    async def _probe(self, way: Route, fresh: bool = False) -> float | None:
        """Whether there is an answer; how long it took. Whatever comes is not used for anything else."""
        url = f"{way.mirror.url}/{names.TIMESTAMP}"
        was_failing, error = way.is_failing, None
        latency_s: float | None = None
        way.begin(self.clock())
        try:
            response = await self.transport.get(
                url,
                max_bytes=names.MAX_TIMESTAMP_BYTES,
                deadline_s=PROBE_DEADLINE_S,
                etag=way.mirror.etag,
                fresh=fresh,
                proxy=way.proxy.address,
            )
            way.mirror.etag, latency_s = response.etag, response.latency_s
        except (TransportError, IntegrityError) as failure:
            error = failure
        self._record_probe(way, error, was_failing)
        return latency_s

    def _record_probe(self, way: Route, error: FetchError | None, was_failing: bool) -> None:
        now = self.clock()
        way.record(error, now, self.dice())
        for health in (way.health, way.proxy.health):
            if health.failing and health.probe_at == math.inf:  # nothing was learned of this one
                health.probe_at = now + PROBE_DEADLINE_S
        if was_failing and not way.is_failing:
            self._announce(way)
        self._disturbed.set()

    async def _measure(self) -> None:
        """Ask each server that has alternatives, by the best proxy, past its cache."""
        ways: dict[Health, Route] = {}
        for routes in list(self._known):
            if len(routes.mirrors) > 1:
                for mirror in routes.mirrors:
                    way = min((way for way in routes.ways if way.mirror is mirror), key=_proxy_order)
                    ways.setdefault(way.health, way)
        async with trio.open_nursery() as nursery:
            for way in ways.values():
                nursery.start_soon(self._measure_one, way)
        for routes in list(self._known):
            routes.reorder()

    async def _measure_one(self, way: Route) -> None:
        if way.is_failing:
            return
        latencies = [await self._probe(way, fresh=True) for _ in range(2)]  # the first may be held up by our own start
        known = [latency_s for latency_s in latencies if latency_s is not None]
        if known:
            way.health.observe(min(known))

    def _announce(self, route: Route) -> None:
        log.info("%s answers again%s", origin_of(route.mirror.url), by_proxy(route))
        for listener in self.listeners:
            listener()


def by_proxy(route: Route) -> str:
    """ "by" the proxy of `route` for a log line, or nothing where none was named."""
    return "" if route.proxy.address == ENVIRONMENT else f" by {route.proxy.address}"


def _proxy_order(way: Route) -> tuple[bool, int, int]:
    return way.is_failing, way.proxy.group, way.proxy.rank


def describe(routes: Routes, used: Route | None, now: float) -> dict[str, Any]:
    """What `cvfs status` shows: the mirrors in order of preference, the proxies, and what was used last."""
    return {
        "mirror": used.mirror.url if used else None,
        "proxy": _proxy_to(used.mirror, used.proxy) if used else None,
        "mirrors": [_describe_mirror(routes, each, now) for each in sorted(routes.mirrors, key=lambda each: each.rank)],
        "proxies": [
            _describe_proxy(address, proxy, now)
            for proxy in dict.fromkeys(way.proxy for way in routes.ways)
            for address in dict.fromkeys(_proxy_to(mirror, proxy) for mirror in routes.mirrors)
        ],
    }


def _proxy_to(mirror: Mirror, proxy: Proxy) -> str:
    """The address of the proxy that is really asked, or DIRECT. Without the password that the environment may have."""
    if proxy.address != ENVIRONMENT:
        return proxy.address
    scheme, _, rest = (environment_proxy(mirror.url) or "").partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if rest and not mirror.url.startswith("file:") else DIRECT


def _describe_mirror(routes: Routes, mirror: Mirror, now: float) -> dict[str, Any]:
    """The best that is known of it, by whatever proxy."""
    ways = [way for way in routes.ways if way.mirror is mirror]
    best = min(ways, key=lambda way: (way.health.failing, now < way.shunned_until, not way.health.answered))
    state, error = best.health.describe(now), best.health.last_error if best.health.failing else None
    problem = error.reason if error else ""
    shunned = next((each for each in (best, mirror) if now < each.shunned_until), None)
    if state == "ok" and shunned is not None:
        state, problem = "shunned", shunned.shunned_for
    return {
        "url": mirror.url,
        "state": state,
        "latency_ms": None if best.health.latency_s is None else round(best.health.latency_s * 1000, 1),
        "problem": problem,
    }


def _describe_proxy(address: str, proxy: Proxy, now: float) -> dict[str, Any]:
    error = proxy.health.last_error if proxy.health.failing else None
    return {
        "address": address,
        "group": proxy.group + 1,
        "state": proxy.health.describe(now),
        "problem": error.reason if error else "",
    }
