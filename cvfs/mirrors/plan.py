"""The course of one fetch: which mirror to ask by which proxy, after which error, until when. Pure.

A way to a mirror leads through a proxy, or through none. Errors speak against the *server* behind it (unreachable,
hangs, 5xx, 429), against the *proxy*, or against one *answer* (wrong bytes, wrong size, 404, too slow). What failed
comes last from then on: a server until it answers again, an answer's giver for a minute. A group of proxies is left for
the next one when every way through it has failed.
"""

from collections.abc import Sequence
from functools import partial

import msgspec

from cvfs.errors import ProxyError, StatusError, TooSlowError
from cvfs.mirrors.health import FetchError, Health, blames_server

BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0
SHUN_S = 60.0
# With another way at hand no single one gets more than this share of the time that is left.
SHARE = 0.5
LEAST_S = 0.01
"""A try after another is not worth less time: it could only be too slow, and hide what is really wrong."""
_GONE = (404, 410)


class Mirror(msgspec.Struct, eq=False):
    """One mirror of one repository. `rank`: the preferred one has the lowest."""

    url: str
    rank: int
    shunned_until: float = 0.0
    shunned_for: str = ""
    etag: str | None = None
    """Of the answer to the last probe."""


class Proxy(msgspec.Struct, eq=False):
    """An HTTP proxy, or DIRECT or ENVIRONMENT; its health is told by errors that are its own."""

    address: str
    group: int
    rank: int
    health: Health


class Route(msgspec.Struct, eq=False):
    """A way to a mirror. `health` is that of the server by this proxy, whatever repository is asked for."""

    mirror: Mirror
    proxy: Proxy
    health: Health
    shunned_until: float = 0.0
    shunned_for: str = ""
    """The wrong answer."""

    @property
    def is_failing(self) -> bool:
        return self.health.failing or self.proxy.health.failing

    def is_open(self, now: float) -> bool:
        return self.is_failing and (self.health.is_open(now) or self.proxy.health.is_open(now))

    def begin(self, now: float) -> None:
        """A request starts on this way."""
        self.health.begin(now)
        self.proxy.health.begin(now)

    def abandon(self) -> None:
        """It ended because its caller left."""
        self.health.abandon()
        self.proxy.health.abandon()

    def record(self, error: FetchError | None, now: float, dice: float) -> None:
        """It ended with `error`, or well."""
        if isinstance(error, ProxyError):
            self.health.abandon()
            self.proxy.health.record_failure(error, now, dice)
        elif error is not None and blames_server(error):
            self.health.record_failure(error, now, dice)
            self.proxy.health.record_success()
        elif isinstance(error, TooSlowError) and not error.asked:
            self.abandon()
        else:
            self.health.record_success()
            self.proxy.health.record_success()


class Try(msgspec.Struct, frozen=True):
    """Ask by `route` now, for at most `deadline_s`; `fresh`: past all caches on the way."""

    route: Route
    fresh: bool
    deadline_s: float


class Wait(msgspec.Struct, frozen=True):
    """Nothing can be asked for `delay_s`."""

    delay_s: float


class Plan:
    """The course of one fetch over `routes` until `deadline`. `first`: a mirror to be asked before all others.

    `routes` are in order of preference, as `preference` says.
    """

    def __init__(self, routes: Sequence[Route], deadline: float, first: Mirror | None = None) -> None:
        self._routes, self._deadline, self._first = routes, deadline, first
        self._by_mirror: dict[Mirror, int] = {}
        self._by_proxy: dict[Proxy, int] = {}
        self._failures: dict[Route, int] = {}
        self._exhausted: set[Route] = set()
        self._fresh: set[Route] = set()
        self._not_before: dict[Route, float] = {}
        self.error: FetchError | None = None

    def decide(self, now: float) -> Try | Wait | None:
        """What to do next; None: nothing more can help before the deadline."""
        if not self._failures and self._first is None and (step := self._decide_well(now)):
            return step
        usable = [route for route in self._routes if not (route in self._exhausted or route.is_open(now))]
        end = self._deadline if self.error is None else self._deadline - LEAST_S
        if not usable or now >= end:
            return None
        ready = [route for route in usable if self._ready_at(route) <= now]
        if ready:
            best = ready[0] if len(ready) == 1 else min(ready, key=partial(self._rank, now, self._spent_groups(now)))
            share = SHARE if len(usable) > 1 else 1.0
            return Try(best, best in self._fresh, (self._deadline - now) * share)
        wake_up = min(map(self._ready_at, usable))
        return Wait(wake_up - now) if wake_up < end else None

    def _decide_well(self, now: float) -> Try | None:
        """What `decide` says of a fetch to which nothing has happened, where all is well: mostly, so it is quick."""
        left_s = self._deadline - now
        for route in self._routes:
            if left_s <= 0 or route.proxy.group != self._routes[0].proxy.group:
                break
            if not (self._is_doubtful(route, now) or now < route.health.busy_until):
                others = (other for other in self._routes if other is not route and not other.is_open(now))
                return Try(route, False, left_s if next(others, None) is None else left_s * SHARE)
        return None

    def record_failure(self, route: Route, error: FetchError, now: float, dice: float) -> None:
        """The last Try, by `route`, ended in `error`."""
        self.error = error
        route.record(error, now, dice)
        self._failures[route] = self._failures.get(route, 0) + 1
        if not _is_gone(error):
            self._by_proxy[route.proxy] = self._by_proxy.get(route.proxy, 0) + 1
        if not isinstance(error, ProxyError):
            self._by_mirror[route.mirror] = self._by_mirror.get(route.mirror, 0) + 1
        if isinstance(error, ProxyError) or blames_server(error):
            backoff_s = min(BACKOFF_S * 2 ** (self._failures[route] - 1), MAX_BACKOFF_S) * (0.5 + dice / 2)
            self._not_before[route] = now + backoff_s
        else:
            self._blame_answer(route, error, now)

    def _blame_answer(self, route: Route, error: FetchError, now: float) -> None:
        if _is_gone(error):
            route.mirror.shunned_until, route.mirror.shunned_for = now + SHUN_S, str(error)
            self._exhausted.update(other for other in self._routes if other.mirror is route.mirror)
            return
        route.shunned_until, route.shunned_for = now + SHUN_S, str(error)
        # Once more at once and past the caches: a proxy may have kept a damaged answer.
        if route in self._fresh or isinstance(error, StatusError):
            self._exhausted.add(route)
        self._fresh.add(route)

    def _ready_at(self, route: Route) -> float:
        return max(self._not_before.get(route, 0.0), route.health.busy_until)

    def _spent_groups(self, now: float) -> frozenset[int]:
        """The groups of proxies in which no way is left that is beyond doubt."""
        if len({route.proxy.group for route in self._routes}) == 1:
            return frozenset()
        good = {route.proxy.group for route in self._routes if not self._is_bad(route, now)}
        return frozenset(route.proxy.group for route in self._routes if route.proxy.group not in good)

    def _is_doubtful(self, route: Route, now: float) -> bool:
        return route.is_failing or now < route.shunned_until or now < route.mirror.shunned_until

    def _is_bad(self, route: Route, now: float) -> bool:
        return route.is_failing or now < route.shunned_until or route in self._failures

    def _rank(self, now: float, spent: frozenset[int], route: Route) -> tuple[int | bool, ...]:
        mirror, proxy = route.mirror, route.proxy
        return (
            proxy.group in spent,
            proxy.group,
            self._is_doubtful(route, now),
            self._by_mirror.get(mirror, 0) + self._by_proxy.get(proxy, 0),
            mirror is not self._first,
            proxy.rank,
            mirror.rank,
        )


def preference(route: Route) -> tuple[int, int, int]:
    """Lower is preferred, as far as all are well: the mirror matters less than the proxy."""
    return route.proxy.group, route.proxy.rank, route.mirror.rank


def _is_gone(error: FetchError) -> bool:
    return isinstance(error, StatusError) and error.status in _GONE
