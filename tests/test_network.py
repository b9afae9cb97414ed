"""cvfs.mirrors.network: what is measured and found again beside the fetches, against servers on loopback."""

import gc
import heapq
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from cvfs.config import Settings
from cvfs.errors import ConfigError, TransportError, TrustError, UnreachableError
from cvfs.format import blob
from cvfs.heads import Heads
from cvfs.mirrors import OTHER_OPINION, Mirrors, Network, Source, network
from cvfs.mirrors.health import BREAKER_AGE_S, BREAKER_MAX_OPEN_S, Health
from cvfs.mount.refresher import Refresher
from cvfs.transport import DIRECT, Transport
from cvfs.trust.anchor import Anchor
from cvfs.trust.names import TIMESTAMP
from tests import servers
from tests.servers import Exchange, FaultyServer

DATA = random.Random(1).randbytes(100_000)
REF, STORED = blob.seal(DATA)
PATH = "/" + blob.blob_path(REF.id)


def make_mirror(path: Path) -> Path:
    file = path / PATH[1:]
    file.parent.mkdir(parents=True)
    file.write_bytes(STORED)
    (path / TIMESTAMP).parent.mkdir()
    (path / TIMESTAMP).write_bytes(b"{}")
    return path


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[list[FaultyServer]]:
    """Three servers; as proxies they have what http://mirror.example has."""
    with ExitStack() as stack:
        yield [stack.enter_context(FaultyServer(make_mirror(tmp_path / str(number)))) for number in range(3)]


class Net:
    """A network that is watched, and the mirrors of one repository in it."""

    def __init__(self, transport: Transport, proxies: Sequence[Sequence[str]], urls: Sequence[str]) -> None:
        self.network = Network(transport, proxies)
        self.mirrors = Mirrors(self.network, urls, transport.sibling())
        self.found = 0
        self.network.listeners.append(self._count)

    def _count(self) -> None:
        self.found += 1

    @property
    def status(self) -> dict[str, Any]:
        return self.mirrors.status()

    @property
    def order(self) -> list[str]:
        return [mirror["url"] for mirror in self.status["mirrors"]]

    def states(self, what: str = "mirrors") -> list[str]:
        return [each["state"] for each in self.status[what]]

    async def fetch(self) -> str:
        """Who gave the blob."""
        assert await self.mirrors.fetch_blob(REF, 20) == STORED
        return str(self.status["mirror"])


def run(action: Callable[[Net], Awaitable[None]], urls: Sequence[str], proxies: Sequence[Sequence[str]] = ()) -> None:
    async def main() -> None:
        with closing(Transport(user_agent="test", read_timeout_s=1)) as transport:
            net = Net(transport, proxies, urls)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(net.network.watch)
                with trio.fail_after(30):
                    await action(net)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


def delay(seconds: float) -> servers.Fault:
    def fault(exchange: Exchange) -> None:
        exchange.stopping.wait(seconds)
        servers.behave(exchange)

    return fault


def test_the_nearest_mirror_is_preferred(fleet: list[FaultyServer]) -> None:
    fleet[0].misbehave(delay(0.2))
    fleet[1].misbehave(delay(0.05))

    async def action(net: Net) -> None:
        await until(lambda: net.order == [fleet[2].url, fleet[1].url, fleet[0].url])
        assert await net.fetch() == fleet[2].url
        near, _, far = (mirror["latency_ms"] for mirror in net.status["mirrors"])
        assert near < far
        assert 200 <= far < 2000

    run(action, [server.url for server in fleet])
    assert [server.requests[f"/{TIMESTAMP}"] for server in fleet] == [2, 2, 2]
    assert all(server.connections == 1 for server in fleet[:2])


def test_mirrors_at_one_distance_stay_in_the_order_they_were_given(fleet: list[FaultyServer]) -> None:
    urls = [server.url for server in fleet]

    async def action(net: Net) -> None:
        await until(lambda: all(mirror["latency_ms"] is not None for mirror in net.status["mirrors"]))
        assert net.order == urls

    run(action, urls)


def test_a_mirror_alone_is_never_measured(fleet: list[FaultyServer]) -> None:
    async def action(net: Net) -> None:
        for _ in range(3):
            await net.fetch()

    run(action, [fleet[0].url, f"{fleet[0].url}/again"])
    assert set(fleet[0].requests) == {PATH}


def test_dead_server_is_found_again_without_a_reader(fleet: list[FaultyServer]) -> None:
    async def action(net: Net) -> None:
        await net.fetch()
        fleet[0].misbehave(servers.raw(b""))
        with pytest.raises(UnreachableError):
            await net.mirrors.fetch_blob(REF, 0.3)
        assert net.states() == ["failing"]
        fleet[0].recover()
        await until(lambda: net.states() == ["ok"], 3)
        assert net.found == 1

    run(action, [fleet[0].url])


def test_no_reader_is_used_to_find_out(fleet: list[FaultyServer]) -> None:
    """While a server hangs, whoever reads is refused at once: the watch alone waits for it."""

    async def action(net: Net) -> None:
        fleet[0].misbehave(servers.status("503 Service Unavailable"))
        with pytest.raises(TransportError):
            await net.mirrors.fetch_blob(REF, 20)
        assert net.states() == ["down"]
        fleet[0].recover()
        fleet[0].misbehave(servers.hang)
        before = fleet[0].requests[PATH]
        slowest_s = 0.0
        ends = time.monotonic() + BREAKER_AGE_S
        while time.monotonic() < ends:
            started = time.monotonic()
            with pytest.raises(UnreachableError, match="not asked"):
                await net.mirrors.fetch_blob(REF, 20)
            slowest_s = max(slowest_s, time.monotonic() - started)
            await trio.sleep(0.002)
        assert slowest_s < 0.3
        assert fleet[0].requests[PATH] == before

    run(action, [fleet[0].url])


def test_watch_does_not_wait_for_threads_that_are_stuck(fleet: list[FaultyServer]) -> None:
    fleet[0].misbehave(servers.hang, path=PATH)

    async def action(net: Net) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(net.mirrors.fetch_blob, REF, 20)
            await until(lambda: fleet[0].open_connections >= 16)
            fleet[0].misbehave(servers.status("503 Oops"), path="/x", times=1)
            with pytest.raises(TransportError):
                await net.network.transport.get(f"{fleet[0].url}/x", max_bytes=1, deadline_s=5)
            assert (await net.network.transport.get(f"{fleet[0].url}/{TIMESTAMP}", max_bytes=9, deadline_s=5)).data
            nursery.cancel_scope.cancel()

    run(action, [fleet[0].url])


def test_what_was_never_asked_is_not_blamed(fleet: list[FaultyServer]) -> None:
    fleet[0].misbehave(servers.hang_in_body(10))

    async def action(net: Net) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(net.mirrors.fetch_blob, REF, 20)
            await until(lambda: fleet[0].open_connections == 16)
            with pytest.raises(TransportError, match="all connections are busy"):
                await net.mirrors.fetch_blob(REF, 0.2)
            assert net.states() == ["unknown"]
            nursery.cancel_scope.cancel()

    run(action, [fleet[0].url])


def test_what_is_dead_is_seldom_asked_while_another_answers(fleet: list[FaultyServer]) -> None:
    fleet[0].misbehave(servers.status("503 Oops"))

    async def action(net: Net) -> None:
        for _ in range(20):
            assert await net.fetch() == fleet[1].url
            await trio.sleep(0.1)
        assert fleet[0].requests.total() <= 3  # a measurement of two, and one fetch

    run(action, [fleet[0].url, fleet[1].url])


def test_a_proxy_stands_in_for_another_until_that_is_back(fleet: list[FaultyServer], monkeypatch: Any) -> None:
    monkeypatch.setattr(network, "LEISURE_S", 0.1)
    proxies = {server.url: server for server in fleet[:2]}

    async def action(net: Net) -> None:
        await net.fetch()
        first = proxies[net.status["proxy"]]
        first.__exit__()
        await net.fetch()
        assert proxies[net.status["proxy"]] is not first
        assert sorted(net.states("proxies")) == ["failing", "ok"]
        assert net.states() == ["ok"]
        with first:
            await until(lambda: net.states("proxies") == ["ok", "ok"])
            await net.fetch()
            assert proxies[net.status["proxy"]] is first
        first.__enter__()

    run(action, ["http://mirror.example"], [list(proxies)])


def test_what_is_shown_of_the_environment_is_the_proxy_that_is_used(
    fleet: list[FaultyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []

    async def action(net: Net) -> None:
        await net.mirrors.fetch_blob(REF, 20)
        shown.append((net.status["proxy"], [proxy["address"] for proxy in net.status["proxies"]]))

    run(action, [fleet[0].url])
    monkeypatch.setenv("http_proxy", fleet[1].url.replace("://", "://user:secret@"))
    run(action, ["http://mirror.example"])
    run(action, [fleet[0].directory.as_uri()])
    assert shown == [(DIRECT, [DIRECT]), (fleet[1].url, [fleet[1].url]), (DIRECT, [DIRECT])]


def test_the_next_group_is_for_when_the_first_has_failed(fleet: list[FaultyServer]) -> None:
    with servers.refusing_port() as port, servers.silent_port() as silent:
        dead = [f"http://127.0.0.1:{port}"]

        async def action(net: Net) -> None:
            assert await net.fetch() == fleet[0].url
            assert net.status["proxy"] == DIRECT
            assert net.states("proxies") == ["failing", "ok"]
            assert await net.fetch() == fleet[0].url

        run(action, [fleet[0].url], [dead, [DIRECT]])

        async def refused(net: Net) -> None:
            with pytest.raises(UnreachableError, match=f"127.0.0.1:{port}: connection refused"):
                await net.mirrors.fetch_blob(REF, 0.5)

        run(refused, [fleet[0].url], [dead])
        assert fleet[0].requests[PATH] == 2
        assert silent


def test_hosts_share_a_group_evenly() -> None:
    proxies = [[f"http://squid{number}:3128" for number in range(4)]]
    with closing(Transport(user_agent="test")) as transport:
        firsts = Counter(Network(transport, proxies).proxies[0].address for _ in range(1000))
    assert len(firsts) == 4
    assert all(180 < count < 320 for count in firsts.values())


@pytest.mark.parametrize("proxy", ["squid", "https://squid:3128", "http://squid:3128/path"])
def test_proxies_that_cannot_be(proxy: str) -> None:
    with closing(Transport(user_agent="test")) as transport, pytest.raises(ConfigError):
        Network(transport, [[proxy]])


def test_now_and_then_another_mirror_is_asked_for_news(fleet: list[FaultyServer]) -> None:
    """The preferred one may be stuck at an old revision; one that is older than what is known is left for a while."""

    async def action(net: Net) -> None:
        asked: list[str] = []

        async def ask(source: Source) -> bytes:
            asked.append(source.url)
            if source.url == fleet[1].url:
                raise TrustError("older than what is known")
            return (await source.get(TIMESTAMP, max_bytes=10)).data

        for _ in range(4 * OTHER_OPINION):
            assert await net.mirrors.consult(ask, 5) == b"{}"
        asked_of = Counter(asked)
        assert asked_of[fleet[0].url] >= 3 * OTHER_OPINION
        assert asked_of[fleet[1].url] == 1
        assert asked_of[fleet[2].url] >= 1
        assert net.states()[1] == "shunned"
        assert net.status["mirrors"][1]["problem"] == "older than what is known"

    run(action, [server.url for server in fleet])


def test_repositories_share_what_is_known_of_a_server(fleet: list[FaultyServer]) -> None:
    async def action(net: Net) -> None:
        fleet[0].misbehave(servers.status("503 Service Unavailable"))
        with pytest.raises(TransportError):
            await net.mirrors.fetch_blob(REF, 20)
        other = Mirrors(net.network, [f"{fleet[0].url}/other"])
        with pytest.raises(UnreachableError, match="not asked"):
            await other.fetch_blob(REF, 20)
        assert not any(path.startswith("/other") for path in fleet[0].requests)

    run(action, [fleet[0].url])


def test_servers_that_nobody_asks_any_more_are_forgotten(fleet: list[FaultyServer]) -> None:
    """Where any name may be a repository, users can name ever new servers."""

    async def action(net: Net) -> None:
        for number in range(5):
            Mirrors(net.network, [f"http://host{number}.example"])
        gc.collect()
        assert len(net.network._healths) == 1

    run(action, [fleet[0].url])


# Ten thousand hosts


def outage(hosts: int, length_s: float, noticed_within_s: float) -> tuple[int, int, int]:
    """Requests in the busiest second of an outage of `length_s` and of the time after it, and the last recovery."""
    dice = random.Random(7)
    events = [(dice.random() * noticed_within_s, number) for number in range(hosts)]
    healths = [Health() for _ in range(hosts)]
    heapq.heapify(events)
    during, after = Counter[int](), Counter[int]()
    while events:
        now, number = heapq.heappop(events)
        health = healths[number]
        if now >= length_s:
            after[int(now - length_s)] += 1
            continue
        during[int(now)] += 1
        health.begin(now)
        health.record_failure(UnreachableError("u", "r"), now, dice.random())
        heapq.heappush(events, (health.probe_at, number))
    return max(count for second, count in during.items() if second >= 90), max(after.values()), max(after)


@pytest.mark.parametrize("noticed_within_s", [60.0, 1.0], ids=["by their refresh", "by one job on all of them"])
def test_ten_thousand_hosts_return_over_seconds_after_an_outage(noticed_within_s: float) -> None:
    """docs/operations.md has these figures: small requests, to a server that has to bear them."""
    during, after, last_s = outage(2000, 180.0, noticed_within_s)
    assert during * 5 < 3500
    assert after * 5 < 3500
    assert last_s <= BREAKER_MAX_OPEN_S


def test_news_are_asked_for_as_soon_as_somebody_answers_if_they_were_missing(fleet: list[FaultyServer]) -> None:
    """Without waiting for the next refresh, or the next attempt at one."""
    fleet[0].misbehave(servers.raw(b""))

    async def action(net: Net) -> None:
        asked = trio.Event()
        heads = SimpleNamespace(problem="unreachable", is_expired=False, head=object())
        client: Any = SimpleNamespace(mirrors=net.mirrors, heads=heads, url="")
        settings: Any = SimpleNamespace(refresh_s=1000.0)
        nothing: Any = None
        refresher = Refresher(client, nothing, settings, nothing, nothing, nothing)
        refresher.refresh = record = AsyncRecorder(asked)  # type: ignore[method-assign]
        with pytest.raises(UnreachableError):
            await net.mirrors.fetch_blob(REF, 0.2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresher.run)
            await trio.sleep(0.1)
            assert record.count == 0
            fleet[0].recover()
            with trio.fail_after(3):
                await asked.wait()
            nursery.cancel_scope.cancel()

    run(action, [fleet[0].url])


@pytest.mark.parametrize("trouble", ["bug", "root that never comes"])
def test_a_refresh_that_fails_is_told_and_tried_again(trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it is: the worker goes on, and a refresh on demand ends."""

    class Mirror:
        network = SimpleNamespace(listeners=[], dice=lambda: 0.5, routes=lambda _: None, clock=None)

    class Broken(Heads):
        async def current(self, deadline_s: float, known_deadline_s: float | None = None) -> Any:
            if trouble == "bug":
                raise RuntimeError("nobody expected that")
            return SimpleNamespace(problem="", manifest=None)

    async def never(_: object) -> None:
        await trio.sleep_forever()

    root: Any = SimpleNamespace(bring=never, manifest=SimpleNamespace(revision=7))
    filesystem: Any = SimpleNamespace(repository=SimpleNamespace(at=lambda _: root))
    mirrors: Any = Mirror()
    heads = Broken(mirrors, "http://test", Path("/nonexistent"), Anchor())
    client: Any = SimpleNamespace(mirrors=mirrors, heads=heads, url="http://test")
    nothing: Any = None
    refresher = Refresher(client, filesystem, Settings(refresh_s=1000.0), nothing, nothing, nothing)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresher.run)
            with trio.fail_after(300):
                for _ in range(3):
                    await refresher.now()
                await refresher._done.wait()  # the next one comes by itself
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    wanted = "RuntimeError('nobody expected that')" if trouble == "bug" else "the root of revision 7 did not come"
    assert wanted in refresher.problem
    (record,) = [record for record in caplog.records if record.name == "cvfs.heads"]  # once an hour
    assert bool(record.exc_info) == (trouble == "bug")


class AsyncRecorder:
    """Counts its calls, and tells of the first."""

    def __init__(self, called: trio.Event) -> None:
        self.count, self._called = 0, called

    async def __call__(self) -> None:
        self.count += 1
        self._called.set()
