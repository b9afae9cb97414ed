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
    StatusError,
    TooLargeError,
    TooSlowError,
    TransportError,
    TruncatedError,
    UnreachableError,
)
from cvfs.format import blob
from cvfs.mirrors import (
    BREAKER_AGE_S,
    BREAKER_FAILURES,
    BREAKER_MAX_OPEN_S,
    BREAKER_OPEN_S,
    DISTRUST_S,
    PROBE_S,
    FetchError,
    Health,
    Mirrors,
    Plan,
    Source,
    Try,
    Wait,
)
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


# Decisions


def make_plan(mirrors: int = 1, deadline: float = 30.0) -> tuple[Plan, list[Health]]:
    healths = [Health() for _ in range(mirrors)]
    return Plan(healths, deadline), healths


def kill(health: Health, now: float) -> float:
    """Let the mirror fail, from `now` on, until its breaker opens; the time at which it did."""
    for number in range(BREAKER_FAILURES):
        health.record_failure(DEAD, now + number * BREAKER_AGE_S, 0.5)
    opened_at = now + (BREAKER_FAILURES - 1) * BREAKER_AGE_S
    assert health.is_open(opened_at)
    return opened_at


def test_the_first_mirror_is_preferred() -> None:
    plan, _ = make_plan(3)
    assert plan.decide(0.0) == Try(0, fresh=False, deadline_s=15.0)


def test_a_single_mirror_may_use_the_whole_deadline() -> None:
    plan, _ = make_plan(1)
    assert plan.decide(10.0) == Try(0, fresh=False, deadline_s=20.0)


@pytest.mark.parametrize("error", [DEAD, WRONG, MISSING, BUSY, SLOW, HANGING])
def test_after_any_error_another_mirror_is_asked_at_once(error: FetchError) -> None:
    plan, _ = make_plan(2)
    plan.record_failure(0, error, 1.0, 0.5)
    step = plan.decide(1.0)
    assert isinstance(step, Try)
    assert step.mirror == 1


def test_a_dead_mirror_is_asked_again_after_growing_waits() -> None:
    plan, _ = make_plan(1)
    waits, now = [], 0.0
    while isinstance(plan.decide(now), Try):
        plan.record_failure(0, DEAD, now, 1.0)
        step = plan.decide(now)
        if not isinstance(step, Wait):
            break
        waits.append(step.delay_s)
        now += step.delay_s
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6][: len(waits)])
    assert BREAKER_AGE_S <= now < 2 * BREAKER_AGE_S  # then the breaker opens
    assert plan.error is DEAD


@pytest.mark.parametrize("error", [WRONG, TooLargeError("u", "r"), TruncatedError("u", "r")])
def test_wrong_bytes_are_asked_for_once_more_past_the_caches(error: FetchError) -> None:
    plan, healths = make_plan(1)
    plan.record_failure(0, error, 0.0, 0.5)
    assert plan.decide(0.0) == Try(0, fresh=True, deadline_s=30.0)
    plan.record_failure(0, error, 0.0, 0.5)
    assert plan.decide(0.0) is None
    assert not healths[0].is_open(0.0)


def test_a_missing_object_is_not_asked_for_again() -> None:
    plan, _ = make_plan(1)
    plan.record_failure(0, MISSING, 0.0, 0.5)
    assert plan.decide(0.0) is None


@pytest.mark.parametrize("error", [WRONG, MISSING, SLOW])
def test_errors_of_objects_never_open_the_breaker(error: FetchError) -> None:
    health = Health()
    for now in range(100):
        health.record_failure(error, float(now), 0.5)
        assert not health.is_open(now)


def test_many_failures_at_one_moment_do_not_open_the_breaker() -> None:
    health = Health()
    for _ in range(100):
        health.record_failure(DEAD, 5.0, 0.5)
    assert not health.is_open(5.0)


def test_an_open_breaker_ends_waiting_fetches_and_refuses_new_ones() -> None:
    plan, healths = make_plan(1, deadline=1000.0)
    plan.record_failure(0, DEAD, 0.0, 0.5)
    assert isinstance(plan.decide(0.0), Wait)
    now = kill(healths[0], 0.0)
    assert plan.decide(now) is None
    assert Plan(healths, now + 30).decide(now) is None


def test_failures_of_requests_under_way_do_not_prolong_an_open_breaker() -> None:
    health = Health()
    now = kill(health, 0.0)
    for _ in range(20):
        health.record_failure(DEAD, now, 0.5)
    assert health.is_open(now)
    assert not health.is_open(now + BREAKER_OPEN_S)


def test_one_request_tests_a_mirror_whose_breaker_has_had_its_time() -> None:
    plan, healths = make_plan(1, deadline=1000.0)
    now = kill(healths[0], 0.0) + BREAKER_MAX_OPEN_S
    assert isinstance(plan.decide(now), Try)
    healths[0].begin(now)
    assert Plan(healths, 1000.0).decide(now) is None
    assert isinstance(Plan(healths, 1000.0).decide(now + PROBE_S), Try)
    healths[0].record_success()
    assert isinstance(Plan(healths, 1000.0).decide(now), Try)


def test_a_test_that_fails_opens_the_breaker_for_longer_up_to_a_bound() -> None:
    health = Health()
    now, times = kill(health, 0.0), []
    for _ in range(8):
        start = now
        while health.is_open(now):
            now += 0.01
        times.append(now - start)
        health.begin(now)
        health.record_failure(DEAD, now, 1.0)
    assert [round(t, 1) for t in times] == sorted(round(t, 1) for t in times)
    assert times[0] < 1
    assert BREAKER_MAX_OPEN_S * 0.9 < times[-1] < BREAKER_MAX_OPEN_S + 0.1


def test_a_test_whose_caller_leaves_is_left_to_the_next() -> None:
    plan, healths = make_plan(1, deadline=1000.0)
    now = kill(healths[0], 0.0) + BREAKER_MAX_OPEN_S
    healths[0].begin(now)
    healths[0].abandon()
    assert isinstance(plan.decide(now), Try)


def test_retry_after_is_waited_for_if_there_is_time() -> None:
    plan, healths = make_plan(1)
    plan.record_failure(0, BUSY, 1.0, 0.5)
    assert plan.decide(1.0) == Wait(3.0)
    assert Plan(healths, 3.0).decide(1.0) is None
    assert isinstance(plan.decide(4.0), Try)


def test_a_mirror_that_gave_wrong_bytes_comes_last_for_a_while() -> None:
    plan, healths = make_plan(2, deadline=1000.0)
    plan.record_failure(0, WRONG, 0.0, 0.5)
    later = Plan(healths, 1000.0)
    assert [step.mirror for step in (later.decide(1.0), later.decide(DISTRUST_S)) if isinstance(step, Try)] == [1, 0]


ERRORS = st.sampled_from([DEAD, WRONG, MISSING, BUSY, SLOW, HANGING, TruncatedError("u", "r")])


@given(st.lists(ERRORS, min_size=200, max_size=200), st.integers(1, 4), st.floats(0, 1, exclude_max=True))
def test_every_fetch_ends(errors: list[FetchError], mirrors: int, dice: float) -> None:
    plan, healths = make_plan(mirrors, deadline=30.0)
    now, tries = 0.0, 0
    while step := plan.decide(now):
        if isinstance(step, Wait):
            assert step.delay_s > 0
            now += step.delay_s
            continue
        assert 0 < step.deadline_s <= 30.0 - now
        healths[step.mirror].begin(now)
        plan.record_failure(step.mirror, errors[tries], now, dice)
        tries += 1
    assert now <= 30.0
    assert tries <= 40 * mirrors


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
            return await action(Mirrors(transport, urls))

    return trio.run(main)


def test_blob_and_head(fleet: list[FaultyServer]) -> None:
    async def fetch(mirrors: Mirrors) -> None:
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
        with trio.fail_after(BREAKER_MAX_OPEN_S + 1):
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
            mirrors = Mirrors(transport, [fleet[0].url], clock=clock)
            for _ in range(2 * BREAKER_FAILURES):
                fleet[0].misbehave(servers.status("500 Oops"), times=1)
                assert await mirrors.fetch_blob(LARGE_REF, 5) == LARGE_STORED
                clock.passed_s += BREAKER_AGE_S

    trio.run(fetch)


def test_cancelled_test_of_a_mirror_is_left_to_the_next_fetch(fleet: list[FaultyServer]) -> None:
    clock = Clock()

    async def fetch() -> None:
        with closing(Transport(user_agent="test")) as transport:
            mirrors = Mirrors(transport, [fleet[0].url], clock=clock)
            fleet[0].misbehave(servers.status("500 Oops"))
            with pytest.raises(StatusError):
                await mirrors.fetch_blob(LARGE_REF, 60)  # until the breaker opens
            clock.passed_s += BREAKER_MAX_OPEN_S
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
        Mirrors(transport, urls)
