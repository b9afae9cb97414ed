"""cvfs.mirrors: the decisions without a clock, then the whole against servers that misbehave."""

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from cvfs.errors import (
    ConfigError,
    IntegrityError,
    ProxyError,
    StatusError,
    TooLargeError,
    TooSlowError,
    TransportError,
    TruncatedError,
    TrustError,
    UnreachableError,
)
from cvfs.format import blob
from cvfs.mirrors import FetchError, Mirrors, Network, Source
from cvfs.mirrors.health import (
    BREAKER_AGE_S,
    BREAKER_FAILURES,
    BREAKER_MAX_OPEN_S,
    BREAKER_OPEN_S,
    PATIENCE_S,
    PROBE_S,
    WATCH_S,
    Health,
    blames_server,
)
from cvfs.mirrors.network import by_distance
from cvfs.mirrors.plan import LEAST_S, SHUN_S, Mirror, Plan, Proxy, Route, Try, Wait
from cvfs.transport import Response, Transport
from tests import servers
from tests.servers import FaultyServer

T = TypeVar("T")

DEAD = UnreachableError("http://m/x", "connection refused")
WRONG = IntegrityError("aa", "bb", "http://m/x")
MISSING = StatusError("http://m/x", 404)
BUSY = StatusError("http://m/x", 429, retry_after_s=3)
SLOW = TooSlowError("http://m/x", "slow", 1000)
HANGING = TooSlowError("http://m/x", "hangs", 0)
UNASKED = TooSlowError("http://m/x", "busy", asked=False)
PROXY = ProxyError("http://m/x", "http://p", "connection refused")


# Decisions


class Rig:
    """Plans over `mirrors` mirrors and proxies in groups of these sizes, at a time and with dice of the test's own."""

    def __init__(self, mirrors: int = 1, groups: tuple[int, ...] = (1,), deadline: float = 30.0) -> None:
        self.mirrors = [Mirror(f"http://m{number}", number) for number in range(mirrors)]
        self.proxies = [
            Proxy(f"p{group}{rank}", group, rank, Health()) for group, size in enumerate(groups) for rank in range(size)
        ]
        self.routes = [Route(mirror, proxy, Health()) for proxy in self.proxies for mirror in self.mirrors]
        self.plan = self.new(deadline)

    def new(self, deadline: float = 30.0, first: int | None = None) -> Plan:
        self.plan = Plan(self.routes, deadline, None if first is None else self.mirrors[first])
        return self.plan

    def route(self, mirror: int, proxy: int = 0) -> Route:
        return self.routes[proxy * len(self.mirrors) + mirror]

    def next(self, now: float = 0.0) -> tuple[int, int]:
        """Which mirror is asked by which proxy."""
        step = self.plan.decide(now)
        assert isinstance(step, Try)
        return self.mirrors.index(step.route.mirror), self.proxies.index(step.route.proxy)

    def fail(self, error: FetchError, now: float = 0.0, dice: float = 0.5) -> tuple[int, int]:
        """Let the next try end in `error`; which one it was."""
        mirror, proxy = self.next(now)
        self.plan.record_failure(self.route(mirror, proxy), error, now, dice)
        return mirror, proxy


def kill(health: Health, now: float) -> float:
    """Let the server fail, from `now` on, until its breaker opens; the time at which it did."""
    age_s = PATIENCE_S if health.answered else BREAKER_AGE_S
    for number in range(BREAKER_FAILURES):
        health.record_failure(DEAD, now + number * age_s, 0.5)
    opened_at = now + (BREAKER_FAILURES - 1) * age_s
    assert health.is_open(opened_at)
    return opened_at


def test_the_first_mirror_is_preferred_and_gets_half_of_the_time() -> None:
    rig = Rig(3)
    assert rig.plan.decide(0.0) == Try(rig.route(0), fresh=False, deadline_s=15.0)


def test_a_single_mirror_may_use_the_whole_deadline() -> None:
    rig = Rig()
    assert rig.plan.decide(10.0) == Try(rig.route(0), fresh=False, deadline_s=20.0)


@pytest.mark.parametrize("error", [DEAD, WRONG, MISSING, BUSY, SLOW, HANGING])
def test_after_any_error_another_mirror_is_asked_at_once_and_preferred_from_then_on(error: FetchError) -> None:
    rig = Rig(2)
    rig.fail(error, 1.0)
    assert rig.next(1.0) == (1, 0)
    rig.new()
    assert rig.next(2.0) == (1, 0)


def test_no_retry_without_time_for_an_answer_hides_the_error_before_it() -> None:
    rig = Rig(2, deadline=30.0)
    assert rig.next(30.0 - LEAST_S / 2) == (0, 0), "a first try is worth any time"
    rig.fail(DEAD, 29.0)
    assert rig.plan.decide(30.0 - LEAST_S / 2) is None
    assert rig.plan.error is DEAD
    alone = Rig(deadline=30.0)
    alone.fail(DEAD, 30.0 - LEAST_S, 1.0)
    assert alone.plan.decide(30.0 - LEAST_S) is None, "nothing is waited for that leaves no time"


def test_a_dead_mirror_is_asked_again_after_growing_waits() -> None:
    rig, waits, now = Rig(), [], 0.0
    while isinstance(rig.plan.decide(now), Try):
        rig.fail(DEAD, now, 1.0)
        step = rig.plan.decide(now)
        if not isinstance(step, Wait):
            break
        waits.append(step.delay_s)
        now += step.delay_s
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6][: len(waits)])
    assert BREAKER_AGE_S <= now < 2 * BREAKER_AGE_S  # then the breaker opens
    assert rig.plan.error is DEAD


@pytest.mark.parametrize("error", [WRONG, TooLargeError("u", "r"), TruncatedError("u", "r")])
def test_wrong_bytes_are_asked_for_once_more_past_the_caches(error: FetchError) -> None:
    rig = Rig()
    rig.fail(error)
    assert rig.plan.decide(0.0) == Try(rig.route(0), fresh=True, deadline_s=30.0)
    rig.fail(error)
    assert rig.plan.decide(0.0) is None
    assert not rig.route(0).is_open(0.0)


def test_a_missing_object_is_not_asked_for_again_by_any_proxy() -> None:
    rig = Rig(2, (2, 1))
    assert [rig.fail(MISSING), rig.fail(MISSING)] == [(0, 0), (1, 0)]
    assert rig.plan.decide(0.0) is None


def test_what_one_proxy_forbids_is_asked_of_another() -> None:
    rig = Rig(1, (2, 1))
    assert [rig.fail(StatusError("u", 403)) for _ in range(3)] == [(0, 0), (0, 1), (0, 2)]
    assert rig.plan.decide(0.0) is None


@pytest.mark.parametrize("error", [WRONG, MISSING, SLOW, UNASKED])
def test_errors_of_answers_never_open_the_breaker(error: FetchError) -> None:
    rig = Rig()
    for now in range(100):
        rig.route(0).record(error, float(now), 0.5)
        assert not rig.route(0).is_failing


def test_many_failures_at_one_moment_do_not_open_the_breaker() -> None:
    health = Health()
    for _ in range(100):
        health.record_failure(DEAD, 5.0, 0.5)
    assert not health.is_open(5.0)


def test_a_server_that_has_answered_before_is_waited_for_longer() -> None:
    health = Health()
    health.record_success()
    for now in range(int(PATIENCE_S)):
        health.record_failure(DEAD, float(now), 0.5)
        assert not health.is_open(now)
    health.record_failure(DEAD, PATIENCE_S, 0.5)
    assert health.is_open(PATIENCE_S)


def test_an_open_breaker_ends_waiting_fetches_and_refuses_new_ones() -> None:
    rig = Rig(deadline=1000.0)
    rig.fail(DEAD)
    assert isinstance(rig.plan.decide(0.0), Wait)
    now = kill(rig.route(0).health, 0.0)
    assert rig.plan.decide(now) is None
    assert rig.new(now + 30).decide(now) is None


def test_failures_of_requests_under_way_do_not_prolong_an_open_breaker() -> None:
    health = Health()
    now = kill(health, 0.0)
    for _ in range(20):
        health.record_failure(DEAD, now, 0.5)
    assert health.is_open(now + BREAKER_OPEN_S / 2 + WATCH_S)
    assert not health.is_open(now + BREAKER_OPEN_S + WATCH_S)


def test_one_request_tests_a_server_whose_breaker_has_had_its_time() -> None:
    rig = Rig(deadline=1000.0)
    route = rig.route(0)
    now = kill(route.health, 0.0) + BREAKER_MAX_OPEN_S + WATCH_S
    assert isinstance(rig.plan.decide(now), Try)
    route.begin(now)
    assert rig.new(1000.0).decide(now) is None
    assert isinstance(rig.new(1000.0).decide(now + PROBE_S), Try)
    route.record(None, now, 0.5)
    assert isinstance(rig.new(1000.0).decide(now), Try)


def test_a_test_that_fails_opens_the_breaker_for_longer_up_to_a_bound() -> None:
    health = Health()
    now, times = kill(health, 0.0), []
    for _ in range(8):
        start = now
        assert health.probe_at > now
        while health.is_open(now):
            now += 0.01
        assert health.probe_at + WATCH_S == pytest.approx(now, abs=0.02)
        times.append(health.probe_at - start)
        health.begin(now)
        health.record_failure(DEAD, now, 1.0)
    assert [round(t, 1) for t in times] == sorted(round(t, 1) for t in times)
    assert times[0] < 1
    assert BREAKER_MAX_OPEN_S * 0.9 < times[-1] < BREAKER_MAX_OPEN_S + 0.1


def test_a_test_whose_caller_leaves_is_left_to_the_next() -> None:
    rig = Rig(deadline=1000.0)
    now = kill(rig.route(0).health, 0.0) + BREAKER_MAX_OPEN_S + WATCH_S
    rig.route(0).begin(now)
    rig.route(0).abandon()
    assert isinstance(rig.plan.decide(now), Try)


def test_retry_after_is_waited_for_if_there_is_time() -> None:
    rig = Rig()
    rig.fail(BUSY, 1.0, dice=0.0)
    assert rig.plan.decide(1.0) == Wait(3.0)
    assert rig.route(0).health.probe_at == 4.0
    assert rig.new(3.0).decide(1.0) is None
    rig.new()
    assert rig.next(4.0) == (0, 0)


def test_hosts_that_were_told_the_same_time_do_not_return_at_the_same_time() -> None:
    healths = [Health() for _ in range(100)]
    for number, health in enumerate(healths):
        health.record_failure(BUSY, 0.0, number / 100)
    assert len({round(health.busy_until, 3) for health in healths}) > 70
    assert all(3.0 <= health.busy_until < 3.75 for health in healths)


@pytest.mark.parametrize("error", [WRONG, MISSING, SLOW, TruncatedError("u", "r"), TrustError("an older revision")])
def test_a_mirror_that_gave_something_wrong_comes_last_for_a_while(error: FetchError) -> None:
    rig = Rig(2)
    rig.fail(error)
    rig.new(1000.0)
    assert rig.next(1.0) == (1, 0)
    assert rig.next(SHUN_S) == (0, 0)


# Proxies


@pytest.mark.parametrize("error", [WRONG, HANGING, SLOW])
def test_another_mirror_by_another_proxy_is_next_since_either_can_be_to_blame(error: FetchError) -> None:
    rig = Rig(2, (2,))
    assert [rig.fail(error), rig.next()] == [(0, 0), (1, 1)]
    rig.new()
    assert rig.next(1.0) == (1, 0)


def test_a_dead_proxy_speaks_against_no_mirror() -> None:
    rig = Rig(2, (2,))
    assert rig.fail(PROXY) == (0, 0)
    assert rig.next() == (0, 1)
    rig.new()
    assert rig.next(1.0) == (0, 1)
    assert not rig.route(0, 0).health.failing


def test_a_proxy_that_answers_for_a_dead_mirror_is_alive() -> None:
    rig = Rig(1, (1, 1))
    rig.proxies[0].health.record_failure(PROXY, 0.0, 0.5)
    rig.route(0, 0).record(StatusError("u", 503), 1.0, 0.5)
    assert not rig.proxies[0].health.failing
    assert rig.route(0, 0).health.failing


def test_a_group_is_left_when_all_its_proxies_have_failed_and_taken_up_again() -> None:
    rig = Rig(2, (2, 1))
    assert [rig.fail(PROXY), rig.fail(PROXY)] == [(0, 0), (0, 1)]
    assert rig.next() == (0, 2)
    rig.new()
    assert rig.next(1.0) == (0, 2)
    rig.route(0, 1).record(None, 2.0, 0.5)
    assert rig.next(2.0) == (0, 1)


def test_a_dead_mirror_makes_nobody_go_past_the_proxies() -> None:
    """10,000 hosts that go DIRECT would be too many for the mirrors that are left."""
    rig = Rig(2, (1, 1))
    assert rig.fail(StatusError("u", 503)) == (0, 0)
    assert rig.next() == (1, 0)
    for now in range(5):
        rig.new(deadline=now + 30.0)
        assert rig.next(now) == (1, 0)


def test_a_missing_object_makes_nobody_go_past_the_proxies() -> None:
    rig = Rig(1, (1, 1))
    for now in range(5):
        rig.new(deadline=now + 30.0)
        assert rig.fail(MISSING, now) == (0, 0)


def test_a_question_can_begin_with_another_mirror_but_not_with_a_bad_one() -> None:
    rig = Rig(3)
    rig.new(first=2)
    assert rig.next() == (2, 0)
    rig.fail(DEAD)
    assert rig.next() == (0, 0)
    rig.new(first=2)
    assert rig.next(1.0) == (0, 0)


# Distance


@pytest.mark.parametrize(
    ("latencies_ms", "order"),
    [
        ([None, None, None], [0, 1, 2]),
        ([80, 15, 40], [1, 2, 0]),
        ([80, None, 15], [0, 1, 2]),  # nothing is known of the one between
        ([3, 1, 2], [0, 1, 2]),  # near is near enough
        ([50, 40, 30], [0, 1, 2]),
        ([90, 40, 1], [2, 1, 0]),
    ],
)
def test_mirrors_are_ordered_by_distance_where_it_is_clear(latencies_ms: list[int | None], order: list[int]) -> None:
    mirrors = [Mirror(str(number), number) for number in range(3)]
    known = dict(zip(mirrors, (None if ms is None else ms / 1000 for ms in latencies_ms), strict=True))
    assert [mirror.rank for mirror in by_distance(mirrors, known.get)] == order


@given(st.lists(st.floats(0, 10), max_size=8))
def test_order_is_stable(latencies_s: list[float]) -> None:
    mirrors = [Mirror(str(number), number) for number in range(len(latencies_s))]
    known = dict(zip(mirrors, latencies_s, strict=True))
    once = by_distance(mirrors, known.get)
    assert by_distance(once, known.get) == once
    assert sorted(mirror.rank for mirror in once) == list(range(len(mirrors)))


def test_latency_is_a_moving_average() -> None:
    health = Health()
    health.observe(0.1)
    assert health.latency_s == 0.1
    for _ in range(20):
        health.observe(0.3)
    assert health.latency_s == pytest.approx(0.3, abs=0.01)


ERRORS = st.sampled_from([DEAD, WRONG, MISSING, BUSY, SLOW, HANGING, PROXY, UNASKED, TruncatedError("u", "r")])


@given(
    st.lists(ERRORS, min_size=700, max_size=700),
    st.integers(1, 3),
    st.lists(st.integers(1, 2), min_size=1, max_size=2),
    st.floats(0, 1, exclude_max=True),
)
def test_every_fetch_ends(errors: list[FetchError], mirrors: int, groups: list[int], dice: float) -> None:
    rig = Rig(mirrors, tuple(groups))
    now, tries = 0.0, 0
    while step := rig.plan.decide(now):
        if isinstance(step, Wait):
            assert step.delay_s > 0
            now += step.delay_s
            continue
        assert 0 < step.deadline_s <= 30.0 - now
        step.route.begin(now)
        rig.plan.record_failure(step.route, errors[tries], now, dice)
        tries += 1
    assert now <= 30.0
    assert tries <= 40 * len(rig.routes)


@given(st.lists(st.tuples(st.integers(0, 7), ERRORS | st.none(), st.floats(0, 20)), max_size=12))
def test_the_quick_way_to_decide_says_the_same(events: list[tuple[int, FetchError | None, float]]) -> None:
    rig, now = Rig(2, (2, 2)), 0.0
    for number, error, passed_s in events:
        now += passed_s
        if error is None:
            rig.routes[number].record(None, now, 0.5)
        else:
            Plan(rig.routes, now + 30).record_failure(rig.routes[number], error, now, 0.5)
    nobody = Mirror("http://nobody", 9)
    assert Plan(rig.routes, now + 30).decide(now) == Plan(rig.routes, now + 30, first=nobody).decide(now)


@given(st.lists(st.tuples(ERRORS | st.none(), st.floats(0, 20))), st.floats(0, 1, exclude_max=True))
def test_whatever_happened_what_answers_is_asked(events: list[tuple[FetchError | None, float]], dice: float) -> None:
    """No history closes a way for good: once all answers are good, nothing is refused."""
    rig, now = Rig(2, (1, 1)), 0.0
    for number, (error, passed_s) in enumerate(events):
        now += passed_s
        route = rig.routes[number % len(rig.routes)]
        route.begin(now)
        route.record(error, now, dice)
        if error is not None and (isinstance(error, ProxyError) or blames_server(error)):
            assert route.is_failing
            assert now <= route.health.probe_at or now <= route.proxy.health.probe_at
    for route in rig.routes:
        route.record(None, now, dice)
    assert isinstance(rig.new(now + 100).decide(now + 80), Try)
    assert not any(route.is_failing for route in rig.routes)


# Against servers


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    for plain in (SMALL, LARGE):
        ref, stored = blob.seal(plain)
        path = tmp_path / blob.blob_path(ref.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored)
    return tmp_path


SMALL, LARGE = b"small" * 100, os.urandom(300_000)
(SMALL_REF, SMALL_STORED), (LARGE_REF, LARGE_STORED) = blob.seal(SMALL), blob.seal(LARGE)
SMALL_PATH = "/" + blob.blob_path(SMALL_REF.id)
LARGE_PATH = "/" + blob.blob_path(LARGE_REF.id)


@pytest.fixture
def fleet(store: Path) -> Iterator[list[FaultyServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FaultyServer(store)) for _ in range(2)]


def run(urls: list[str], action: Callable[[Mirrors], Awaitable[T]]) -> T:
    async def main() -> T:
        with closing(Transport(user_agent="test", read_timeout_s=1)) as transport:
            return await action(Mirrors(Network(transport), urls))

    return trio.run(main)


def test_blob_and_head(fleet: list[FaultyServer]) -> None:
    async def fetch(mirrors: Mirrors) -> None:
        mirrors._questions = 0  # now and then another mirror is asked first
        assert await mirrors.fetch_blob(LARGE_REF, 5) == LARGE_STORED
        assert await mirrors.fetch_blob(SMALL_REF, 5) == SMALL_STORED

        async def ask_twice(source: Source) -> tuple[Response, Response]:
            first = await source.get("manifest.json", max_bytes=100)
            return first, await source.get("manifest.json", max_bytes=100, etag=first.etag)

        first, second = await mirrors.consult(ask_twice, 5)
        assert (first.data, second.not_modified) == (b"{}", True)

    run([fleet[0].url + "/", fleet[1].url], fetch)
    assert not fleet[1].requests


@pytest.mark.parametrize(
    "fault",
    [
        servers.flip(7),
        servers.truncate(100),
        servers.shorten(100),
        servers.grow(1),
        servers.claim(10**12),
        servers.html,
        servers.status("404 Not Found"),
        servers.status("500 Internal Server Error"),
        servers.status("429 Too Many Requests", "Retry-After: 9\r\n"),
        servers.raw(b""),
        servers.hang,
        servers.drip(0.01),
    ],
)
def test_another_mirror_stands_in(fleet: list[FaultyServer], fault: servers.Fault) -> None:
    fleet[0].misbehave(fault)
    data = run([server.url for server in fleet], lambda mirrors: mirrors.fetch_blob(LARGE_REF, 4))
    assert data == LARGE_STORED
    assert (fleet[0].requests[LARGE_PATH], fleet[1].requests[LARGE_PATH]) == (1, 1)


def test_wrong_bytes_of_a_proxy_are_healed_by_its_origin(fleet: list[FaultyServer]) -> None:
    fleet[0].misbehave(servers.flip(7), times=1)
    assert run([fleet[0].url], lambda mirrors: mirrors.fetch_blob(LARGE_REF, 5)) == LARGE_STORED
    assert [exchange.headers.get("cache-control") for exchange in fleet[0].seen] == [None, "no-cache"]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (servers.flip(7), IntegrityError),
        (servers.truncate(100), TruncatedError),
        (servers.shorten(100), TruncatedError),
        (servers.grow(1), TooLargeError),
    ],
)
def test_one_bad_object_costs_only_itself(
    fleet: list[FaultyServer], fault: servers.Fault, kind: type[TransportError]
) -> None:
    fleet[0].misbehave(fault, path=LARGE_PATH)

    async def fetch(mirrors: Mirrors) -> None:
        for _ in range(10):
            with pytest.raises(kind):
                await mirrors.fetch_blob(LARGE_REF, 5)
            assert await mirrors.fetch_blob(SMALL_REF, 5) == SMALL_STORED
        fleet[0].recover()
        assert await mirrors.fetch_blob(LARGE_REF, 5) == LARGE_STORED

    run([fleet[0].url], fetch)


def test_what_is_wrong_is_logged_with_its_source(fleet: list[FaultyServer], caplog: pytest.LogCaptureFixture) -> None:
    fleet[0].misbehave(servers.flip(7))
    run([server.url for server in fleet], lambda mirrors: mirrors.fetch_blob(LARGE_REF, 5))
    (record,) = caplog.records
    assert LARGE_REF.id.hex() in record.getMessage()
    assert fleet[0].url in record.getMessage()


def test_a_server_that_restarts_is_waited_for(store: Path) -> None:
    server = FaultyServer(store)
    with server:
        pass

    async def fetch(mirrors: Mirrors) -> bytes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(restart)
            return await mirrors.fetch_blob(LARGE_REF, 20)

    async def restart() -> None:
        await trio.sleep(0.4)
        server.__enter__()

    try:
        assert run([server.url], fetch) == LARGE_STORED
    finally:
        server.__exit__()


def test_with_a_dead_server_reads_fail_at_once_and_recover_by_themselves(store: Path) -> None:
    server = FaultyServer(store)
    with server:
        pass

    async def fetch(mirrors: Mirrors) -> float:
        with pytest.raises(UnreachableError):
            await mirrors.fetch_blob(LARGE_REF, 30)
        started = time.monotonic()
        for _ in range(50):
            with pytest.raises(UnreachableError, match="refused"):
                await mirrors.fetch_blob(LARGE_REF, 30)
        at_once_s = time.monotonic() - started
        with server:
            await fetch_until_it_works(mirrors)
        return at_once_s

    async def fetch_until_it_works(mirrors: Mirrors) -> None:
        with trio.fail_after(BREAKER_MAX_OPEN_S + WATCH_S + 1):
            while True:
                try:
                    await mirrors.fetch_blob(LARGE_REF, 30)
                except UnreachableError:
                    await trio.sleep(0.02)
                else:
                    return

    assert run([server.url], fetch) < 0.5


def test_the_deadline_holds_over_all_tries(fleet: list[FaultyServer]) -> None:
    for server in fleet:
        server.misbehave(servers.hang)

    async def fetch(mirrors: Mirrors) -> None:
        with pytest.raises(TransportError):
            await mirrors.fetch_blob(LARGE_REF, 0.6)

    started = time.monotonic()
    run([server.url for server in fleet], fetch)
    assert time.monotonic() - started < 1.1
    assert all(server.requests for server in fleet)


def test_a_cancelled_fetch_leaves_nothing_behind(fleet: list[FaultyServer]) -> None:
    fleet[0].misbehave(servers.hang, times=1)

    async def fetch(mirrors: Mirrors) -> bytes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mirrors.fetch_blob, LARGE_REF, 60)
            await trio.to_thread.run_sync(fleet[0].wait_until, lambda: fleet[0].requests[LARGE_PATH] == 1)
            nursery.cancel_scope.cancel()
        return await mirrors.fetch_blob(LARGE_REF, 5)

    assert run([fleet[0].url], fetch) == LARGE_STORED


class Clock:
    """The real one, but one can let time pass."""

    passed_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.passed_s


def test_success_ends_a_row_of_failures(fleet: list[FaultyServer]) -> None:
    clock = Clock()

    async def fetch() -> None:
        with closing(Transport(user_agent="test")) as transport:
            mirrors = Mirrors(Network(transport, clock=clock), [fleet[0].url])
            for _ in range(2 * BREAKER_FAILURES):
                fleet[0].misbehave(servers.status("500 Oops"), times=1)
                assert await mirrors.fetch_blob(LARGE_REF, 5) == LARGE_STORED
                clock.passed_s += BREAKER_AGE_S

    trio.run(fetch)


def test_cancelled_test_of_a_mirror_is_left_to_the_next_fetch(fleet: list[FaultyServer]) -> None:
    clock = Clock()

    async def fetch() -> None:
        with closing(Transport(user_agent="test")) as transport:
            mirrors = Mirrors(Network(transport, clock=clock), [fleet[0].url])
            fleet[0].misbehave(servers.status("500 Oops"))
            with pytest.raises(StatusError):
                await mirrors.fetch_blob(LARGE_REF, 60)  # until the breaker opens
            clock.passed_s += BREAKER_MAX_OPEN_S + WATCH_S
            fleet[0].misbehave(servers.hang, times=1)
            with trio.move_on_after(0.2):
                await mirrors.fetch_blob(LARGE_REF, 60)
            fleet[0].recover()
            assert await mirrors.fetch_blob(LARGE_REF, 5) == LARGE_STORED

    trio.run(fetch)


def test_a_directory_is_a_mirror(store: Path) -> None:
    assert run([f"file://{store}"], lambda mirrors: mirrors.fetch_blob(LARGE_REF, 5)) == LARGE_STORED


def test_no_time_at_all(fleet: list[FaultyServer]) -> None:
    async def fetch(mirrors: Mirrors) -> None:
        with pytest.raises(UnreachableError, match="no time"):
            await mirrors.fetch_blob(LARGE_REF, 0)

    run([fleet[0].url], fetch)


@pytest.mark.parametrize("urls", [[], ["nonsense"], ["http://host/?a=b"]])
def test_mirrors_that_cannot_be(urls: list[str]) -> None:
    with closing(Transport(user_agent="test")) as transport, pytest.raises(ConfigError):
        Mirrors(Network(transport), urls)
