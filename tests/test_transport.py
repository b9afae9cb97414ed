"""cvfs.transport against real sockets: what arrives, what is refused, and that nothing can hold a caller up."""

import contextlib
import os
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from cvfs.errors import (
    ConfigError,
    IntegrityError,
    ProxyError,
    StatusError,
    TooLargeError,
    TooSlowError,
    TruncatedError,
    UnreachableError,
)
from cvfs.transport import (
    DIRECT,
    ENVIRONMENT,
    Credentials,
    Response,
    Transport,
    check_base_url,
    check_proxy,
    check_url,
    load_credentials,
    origin_of,
    recent,
)
from cvfs.transport.attempt import Attempt
from cvfs.transport.connect import Connector, in_turns
from cvfs.transport.url import find_redirect
from tests import servers
from tests.servers import FaultyServer

BODY = os.urandom(300_000)  # more than one block
SLACK_S = 0.5  # what a busy machine may add to a deadline


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "blob").write_bytes(BODY)
    (tmp_path / "empty").write_bytes(b"")
    with FaultyServer(tmp_path) as running:
        yield running


@pytest.fixture
def transport() -> Iterator[Transport]:
    made = make_transport()
    yield made
    made.close()


def make_transport(**options: Any) -> Transport:
    return Transport(user_agent="cvfs-test", **options)


def get(transport: Transport, url: str, **options: Any) -> Response:
    wanted = {"max_bytes": 1_000_000, "deadline_s": 10.0, **options}
    return trio.run(partial(transport.get, url, **wanted))


def elapsed_s(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


async def wait_until_idle(transport: Transport) -> None:
    with trio.fail_after(3):
        while transport.statistics().active:  # noqa: ASYNC110
            await trio.sleep(0.005)


# What arrives


@pytest.mark.parametrize("fault", [servers.behave, servers.chunked(), servers.unannounced], ids=["", "chunks", "end"])
def test_body_arrives_whole_however_it_is_framed(server: FaultyServer, transport: Transport, fault: Any) -> None:
    server.misbehave(fault)
    assert get(transport, f"{server.url}/blob").data == BODY
    assert get(transport, f"{server.url}/blob", max_bytes=len(BODY)).data == BODY
    assert get(transport, f"{server.url}/blob", exact_bytes=len(BODY)).data == BODY


def test_empty_body(server: FaultyServer, transport: Transport) -> None:
    assert get(transport, f"{server.url}/empty").data == b""
    assert get(transport, f"{server.url}/empty", max_bytes=0, exact_bytes=0).data == b""


def test_address_may_be_any_text(tmp_path: Path, server: FaultyServer, transport: Transport) -> None:
    (tmp_path / "ü").write_bytes(b"found")
    for path in ("/%C3%BC", "/ü", "/ü?a={b}#c"):
        assert get(transport, f"{server.url}{path}").data == b"found"
    assert [exchange.path for exchange in server.seen] == ["/%C3%BC", "/%C3%BC", "/%C3%BC?a=%7Bb%7D"]
    server.misbehave(servers.redirect("ü"), path="/away")
    assert get(transport, f"{server.url}/away").data == b"found"


def test_request_asks_for_identity_and_says_who_asks(server: FaultyServer, transport: Transport) -> None:
    get(transport, f"{server.url}/blob")
    headers = server.seen[0].headers
    assert headers["accept-encoding"] == "identity"
    assert headers["user-agent"] == "cvfs-test"
    assert "cache-control" not in headers
    get(transport, f"{server.url}/blob", fresh=True)
    assert server.seen[1].headers["cache-control"] == "no-cache"


def test_encoded_body_is_not_mistaken_for_the_stored_bytes(server: FaultyServer, transport: Transport) -> None:
    server.misbehave(servers.status("200 OK", "Content-Encoding: gzip\r\n", b"zipped"))
    with pytest.raises(IntegrityError, match="gzip"):
        get(transport, f"{server.url}/blob")


def test_etag_saves_the_body(server: FaultyServer, transport: Transport) -> None:
    first = get(transport, f"{server.url}/blob")
    assert (first.etag, first.not_modified) == (f'"{zlib.crc32(BODY):x}"', False)
    second = get(transport, f"{server.url}/blob", etag=first.etag)
    assert (second.data, second.etag, second.not_modified) == (b"", first.etag, True)
    assert get(transport, f"{server.url}/blob", etag='"other"').data == BODY
    assert server.connections == 1


def test_answer_304_to_an_unconditional_request_is_an_error(server: FaultyServer, transport: Transport) -> None:
    server.misbehave(servers.status("304 Not Modified"))
    with pytest.raises(StatusError, match="304"):
        get(transport, f"{server.url}/blob")


@pytest.mark.parametrize("etag", ["unquoted", '"a\\"b"x', '"' + "a" * 300 + '"', '"\xff"'])
def test_etag_that_could_not_be_sent_back_is_ignored(server: FaultyServer, transport: Transport, etag: str) -> None:
    extra = f"ETag: {etag}\r\n"
    server.misbehave(
        lambda exchange: exchange.send(f"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{extra}\r\n".encode("latin-1"))
    )
    assert get(transport, f"{server.url}/blob").etag is None


def test_connections_are_kept_alive(server: FaultyServer, transport: Transport) -> None:
    for _ in range(5):
        get(transport, f"{server.url}/blob")
    assert server.connections == 1


def test_kept_connection_that_was_closed_meanwhile_is_replaced(server: FaultyServer, transport: Transport) -> None:
    get(transport, f"{server.url}/blob")
    server.misbehave(servers.raw(b""), times=1)
    assert get(transport, f"{server.url}/blob").data == BODY
    assert (server.requests["/blob"], server.connections) == (3, 2)
    server.misbehave(servers.raw(b""))
    with pytest.raises(UnreachableError):
        get(transport, f"{server.url}/blob")
    assert server.requests["/blob"] == 5


def test_many_at_once_use_no_more_connections_than_allowed(server: FaultyServer) -> None:
    transport = make_transport(limit=3)

    async def fetch_all() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(partial(transport.get, f"{server.url}/blob", max_bytes=len(BODY), deadline_s=10))

    trio.run(fetch_all)
    assert server.requests["/blob"] == 20
    assert server.connections <= 3
    transport.close()


def test_ipv6(tmp_path: Path, transport: Transport) -> None:
    (tmp_path / "blob").write_bytes(b"six")
    with FaultyServer(tmp_path, host="::1") as server:
        assert get(transport, f"{server.url}/blob").data == b"six"


def test_next_address_of_a_host_is_tried(
    server: FaultyServer, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.refusing_port() as port:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", p)) for p in (port, server.port)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        assert get(transport, "http://two.example/blob").data == BODY


@pytest.mark.parametrize("silent", [servers.silent_port, servers.refusing_port])
def test_dead_ipv6_costs_a_quarter_of_a_second_once(
    server: FaultyServer, transport: Transport, monkeypatch: pytest.MonkeyPatch, silent: Any
) -> None:
    """An AAAA record that leads nowhere, before an A record that is right."""
    asked: list[Any] = []
    with dead_ipv6(silent) as dead:
        found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", dead)] * 3
        found += [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: asked.append(1) or found)
        first_s = elapsed_s(lambda: get(transport, "http://two.example/blob"))
        server.misbehave(servers.raw(b""), times=1)  # the kept connection is closed: another is made
        again_s = elapsed_s(lambda: get(transport, "http://two.example/blob"))
    assert first_s < 0.25 + SLACK_S
    assert again_s < 0.25
    assert len(asked) == server.connections == 2


@contextlib.contextmanager
def dead_ipv6(port: Any) -> Iterator[Any]:
    """The IPv6 form of an IPv4 address that does not answer: as dead, and needs no network that blackholes."""
    with port() as number:
        yield ("::ffff:127.0.0.1", number, 0, 0)


def test_families_take_turns() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    found: list[Any] = [(family, 1, 6, number) for number, family in enumerate([six, six, six, four, four])]
    assert [address[3] for address in in_turns(found, None)] == [0, 3, 1, 4, 2]
    assert [address[3] for address in in_turns(found, four)] == [3, 0, 4, 1, 2]
    assert in_turns([], four) == []


def test_host_without_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with pytest.raises(OSError, match="assign"):
        Connector(5).connect("host", 1, (), time.monotonic() + 1, lambda opened: None)


def test_a_connection_does_not_keep_the_deadline_of_its_first_request(
    server: FaultyServer, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept alive for later requests, which have more time."""
    opened, watch = [], Attempt.watch

    def look(attempt: Attempt, watched: socket.socket, connection: Any = None) -> None:
        opened.append(watched)
        watch(attempt, watched, connection)

    monkeypatch.setattr(Attempt, "watch", look)
    get(transport, f"{server.url}/blob", deadline_s=1.0)
    assert opened[-1].getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000


def test_hosts_without_end_are_not_all_remembered(
    server: FaultyServer, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror may redirect each request to a name that nobody has heard of."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(recent, "MOST", 3)
    for number in range(6):
        get(transport, f"http://host{number}.example/blob")
    http: Any = transport._http
    for remembered in (http._environment, http._connector._known, http._connector._families):
        assert len(remembered) == 3


def test_resolver_that_has_gone_leaves_what_it_said_before(
    server: FaultyServer, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    get(transport, "http://known.example/blob")
    transport.close()

    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert get(transport, "http://known.example/blob").data == BODY
    assert server.connections == 2
    with pytest.raises(UnreachableError, match="name resolution"):
        get(transport, "http://unknown.example/blob")


def test_check_runs_in_the_worker_thread_and_its_error_is_raised(server: FaultyServer, transport: Transport) -> None:
    threads = []

    def check(data: bytes, source: str) -> None:
        threads.append(threading.current_thread())
        raise IntegrityError("this", str(len(data)), source)

    with pytest.raises(IntegrityError, match=f"wanted this, got {len(BODY)}"):
        get(transport, f"{server.url}/blob", check=check)
    assert threads != [threading.main_thread()]


def test_statistics_count_requests_bytes_and_errors(server: FaultyServer, transport: Transport) -> None:
    get(transport, f"{server.url}/blob")
    server.misbehave(servers.truncate(1000))
    for _ in range(2):
        with pytest.raises(TruncatedError):
            get(transport, f"{server.url}/blob")
    counted = transport.statistics()
    assert (counted.requests, counted.received_bytes, counted.active) == (3, len(BODY) + 2000, 0)
    assert counted.errors == {"TruncatedError": 2}


# What is refused


def test_too_large_by_its_announced_length_is_refused_unread(server: FaultyServer, transport: Transport) -> None:
    server.misbehave(servers.claim(10**15))
    with pytest.raises(TooLargeError):
        get(transport, f"{server.url}/blob", max_bytes=len(BODY))
    assert transport.statistics().received_bytes == 0


def test_too_large_without_an_announced_length_stops_at_the_limit(server: FaultyServer, transport: Transport) -> None:
    server.misbehave(servers.endless)
    with pytest.raises(TooLargeError):
        get(transport, f"{server.url}/blob", max_bytes=1_000_000)
    assert transport.statistics().received_bytes == 1_000_001


def test_more_than_the_announced_length_is_not_taken(server: FaultyServer, transport: Transport) -> None:
    server.misbehave(servers.claim(1000))
    assert get(transport, f"{server.url}/blob").data == BODY[:1000]
    server.recover()
    assert get(transport, f"{server.url}/blob").data == BODY


@pytest.mark.parametrize(
    "fault",
    [
        servers.truncate(0),
        servers.truncate(100_000),
        servers.chunked(end=b""),
        servers.chunked(end=b"zz\r\n"),
        servers.chunked(end=b"-5\r\n"),
    ],
    ids=["at once", "in the middle", "no last chunk", "no chunk size", "negative chunk size"],
)
def test_truncated(server: FaultyServer, transport: Transport, fault: servers.Fault) -> None:
    server.misbehave(fault)
    with pytest.raises(TruncatedError):
        get(transport, f"{server.url}/blob")
    server.recover()
    assert get(transport, f"{server.url}/blob").data == BODY


@pytest.mark.parametrize("fault", [servers.shorten(5000), servers.html], ids=["cut", "html"])
def test_shorter_than_demanded(server: FaultyServer, transport: Transport, fault: servers.Fault) -> None:
    server.misbehave(fault)
    with pytest.raises(TruncatedError):
        get(transport, f"{server.url}/blob", exact_bytes=len(BODY))


def test_without_a_length_the_end_of_the_connection_is_not_believed(server: FaultyServer, transport: Transport) -> None:
    server.misbehave(servers.unannounced)
    with pytest.raises(TruncatedError):
        get(transport, f"{server.url}/blob", exact_bytes=len(BODY) + 1)


def test_larger_than_demanded(server: FaultyServer, transport: Transport) -> None:
    server.misbehave(servers.grow(1))
    with pytest.raises(TooLargeError):
        get(transport, f"{server.url}/blob", exact_bytes=len(BODY))
    with pytest.raises(TooLargeError):
        get(transport, f"{server.url}/blob", max_bytes=10, exact_bytes=11)


@pytest.mark.parametrize(
    ("line", "retryable"),
    [("404 Not Found", False), ("403 Forbidden", False), ("503 Service Unavailable", True), ("206 Partial", False)],
)
def test_status_other_than_200(server: FaultyServer, transport: Transport, line: str, retryable: bool) -> None:
    server.misbehave(servers.status(line, body=b"sorry"))
    with pytest.raises(StatusError, match=line) as caught:
        get(transport, f"{server.url}/blob")
    assert (caught.value.status, caught.value.retryable) == (int(line[:3]), retryable)
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("7", 7, 7), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0), ("Fri, 01 Jan 2100 00:00:00 GMT", 1e8, 1e10)],
)
def test_retry_after(server: FaultyServer, transport: Transport, value: str, low: float, high: float) -> None:
    server.misbehave(servers.status("429 Too Many Requests", f"Retry-After: {value}\r\n"))
    with pytest.raises(StatusError) as caught:
        get(transport, f"{server.url}/blob")
    assert caught.value.retry_after_s is not None
    assert low <= caught.value.retry_after_s <= high


@pytest.mark.parametrize("value", ["soon", "-1", "1e9", "9" * 30, "Wed, 99 Oct 2015 07:28:00 GMT"])
def test_retry_after_that_is_none(server: FaultyServer, transport: Transport, value: str) -> None:
    server.misbehave(servers.status("429 Too Many Requests", f"Retry-After: {value}\r\n"))
    with pytest.raises(StatusError) as caught:
        get(transport, f"{server.url}/blob")
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
    ],
    ids=["nothing", "blank", "ssh", "no status", "many headers", "long header", "two lengths"],
)
def test_what_is_not_http(server: FaultyServer, transport: Transport, data: bytes) -> None:
    server.misbehave(servers.raw(data))
    with pytest.raises((UnreachableError, TruncatedError)) as caught:
        get(transport, f"{server.url}/blob", exact_bytes=len(BODY))
    assert "\n" not in str(caught.value)


def test_refused_and_unknown_host_are_unreachable_in_one_plain_line(transport: Transport) -> None:
    with servers.refusing_port() as port, pytest.raises(UnreachableError) as caught:
        get(transport, f"http://127.0.0.1:{port}/blob")
    assert str(caught.value) == f"connection refused: http://127.0.0.1:{port}/blob"
    with pytest.raises(UnreachableError) as caught:
        get(transport, "http://does-not-exist.invalid/blob")
    assert "object at 0x" not in str(caught.value)


# Deadlines


@pytest.mark.parametrize(
    "fault",
    [
        servers.hang,
        servers.hang_in_body(1000),
        servers.drip(),
        servers.drip_head(),
        servers.raw(b"HTTP/1.1 100 C\r\n\r\n" * 9),
    ],
    ids=["hang", "hang in body", "drip", "drip in head", "continue"],
)
def test_total_deadline(server: FaultyServer, transport: Transport, fault: servers.Fault) -> None:
    def hold_on(exchange: servers.Exchange) -> None:
        fault(exchange)
        exchange.hang()

    server.misbehave(hold_on)

    async def fetch_and_wait() -> None:
        with pytest.raises(TooSlowError):
            await transport.get(f"{server.url}/blob", max_bytes=len(BODY), deadline_s=0.3)
        await wait_until_idle(transport)  # long before any socket timeout: the thread was woken

    assert elapsed_s(lambda: trio.run(fetch_and_wait)) < 0.3 + SLACK_S
    server.wait_until(lambda: server.open_connections == 0)
    server.recover()
    assert get(transport, f"{server.url}/blob").data == BODY


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("port", [servers.silent_port, servers.mute_port], ids=["in connect", "after connect"])
def test_deadline_covers_connect_and_handshake(transport: Transport, port: Any, scheme: str) -> None:
    async def fetch_and_wait(url: str) -> None:
        with pytest.raises(TooSlowError):
            await transport.get(url, max_bytes=10, deadline_s=0.3)
        await wait_until_idle(transport)

    with port() as number:
        assert elapsed_s(lambda: trio.run(fetch_and_wait, f"{scheme}://127.0.0.1:{number}/")) < 0.3 + SLACK_S


def test_deadline_covers_name_lookup(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: resolver.wait(10) and [])

    async def fetch() -> None:
        with pytest.raises(TooSlowError):
            await transport.get("http://slow.example/", max_bytes=10, deadline_s=0.2)
        assert transport.statistics().active == 1  # it cannot be woken, so it keeps its place
        resolver.set()
        await wait_until_idle(transport)

    assert elapsed_s(lambda: trio.run(fetch)) < 0.2 + SLACK_S


def test_deadline_covers_the_wait_for_a_thread(server: FaultyServer) -> None:
    transport = make_transport(limit=1)
    server.misbehave(servers.hang)

    async def fetch_two() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, 0.8)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(fetch, 0.2)

    async def fetch(deadline_s: float) -> None:
        with pytest.raises(TooSlowError):
            await transport.get(f"{server.url}/blob", max_bytes=len(BODY), deadline_s=deadline_s)
        finished.append(deadline_s)

    finished: list[float] = []
    trio.run(fetch_two)
    assert finished == [0.2, 0.8]
    assert server.requests["/blob"] == 1


def test_socket_timeouts_tell_no_connection_from_no_answer(server: FaultyServer) -> None:
    transport = make_transport(connect_timeout_s=0.1, read_timeout_s=0.2)
    with servers.silent_port() as port, pytest.raises(UnreachableError, match="no connection"):
        get(transport, f"http://127.0.0.1:{port}/")
    server.misbehave(servers.hang, times=1)
    with pytest.raises(TooSlowError) as caught:
        get(transport, f"{server.url}/blob")
    assert caught.value.received_bytes == 0
    server.misbehave(servers.hang_in_body(1000))
    with pytest.raises(TooSlowError) as caught:
        get(transport, f"{server.url}/blob")
    assert caught.value.received_bytes == 1000


def test_deadline_of_nothing(server: FaultyServer, transport: Transport) -> None:
    for deadline_s in (0.0, -1.0):
        with pytest.raises(TooSlowError):
            get(transport, f"{server.url}/blob", deadline_s=deadline_s)
    assert not server.requests


def test_cancelled_caller_is_released_and_the_connection_closed(server: FaultyServer, transport: Transport) -> None:
    server.misbehave(servers.hang_in_body(1000), times=1)

    async def fetch_and_leave() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(transport.get, f"{server.url}/blob", max_bytes=len(BODY), deadline_s=60))
            await trio.to_thread.run_sync(server.wait_until, lambda: server.requests["/blob"] == 1)
            nursery.cancel_scope.cancel()
        await wait_until_idle(transport)

    assert elapsed_s(lambda: trio.run(fetch_and_leave)) < 2
    server.wait_until(lambda: server.open_connections == 0)
    assert get(transport, f"{server.url}/blob").data == BODY


def test_late_abort_does_not_touch_a_connection_that_was_passed_on() -> None:
    class Connection:
        attempt: Attempt | None = None

    connection = Connection()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        first, second = (
            Attempt("http://host/", limit_bytes=1, exact=False, deadline=0, read_timeout_s=1) for _ in range(2)
        )
        first.watch(ours, connection)
        second.watch(ours, connection)
        first.abort()
        theirs.send(b"x")
        assert ours.recv(1) == b"x"
        second.abort()
        assert ours.recv(1) == b""
        with pytest.raises(OSError, match=r"[Cc]ancel"):
            second.watch(ours, connection)


def test_requests_that_are_cancelled_do_not_harm_those_that_take_their_connections(server: FaultyServer) -> None:
    transport = make_transport(limit=4)

    async def fetch(delay_s: float) -> None:
        with trio.move_on_after(delay_s) as scope:
            response = await transport.get(f"{server.url}/blob", max_bytes=len(BODY), deadline_s=10)
            assert response.data == BODY
        if delay_s > 1:
            assert not scope.cancelled_caught

    async def fetch_many() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(120):
                nursery.start_soon(fetch, 60 if number % 2 else number / 2000)

    trio.run(fetch_many)
    transport.close()


# Redirects and credentials


def test_redirect_is_followed_also_to_another_server(
    server: FaultyServer, tmp_path: Path, transport: Transport
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other").write_bytes(b"moved here")
    with FaultyServer(tmp_path / "elsewhere") as other:
        server.misbehave(servers.redirect(f"{other.url}/other"), path="/away")
        server.misbehave(servers.redirect("blob"), path="/near")
        assert get(transport, f"{server.url}/away").data == b"moved here"
        assert get(transport, f"{server.url}/near").data == BODY


def test_redirects_end(server: FaultyServer, transport: Transport) -> None:
    server.misbehave(servers.redirect("/blob"))
    with pytest.raises(StatusError, match="redirects"):
        get(transport, f"{server.url}/blob")
    assert server.requests["/blob"] == 6


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://host/x", "https:///x", "", "http://user:pw@host/", "//[x"]
)
def test_redirect_that_is_not_followed(server: FaultyServer, transport: Transport, target: str) -> None:
    server.misbehave(servers.redirect(target), times=1 if target else None)
    with pytest.raises(StatusError, match="redirect"):
        get(transport, f"{server.url}/blob")


def test_body_of_a_redirect_is_not_read(server: FaultyServer, transport: Transport) -> None:
    server.misbehave(servers.endless_redirect("/blob"), path="/start")
    assert get(transport, f"{server.url}/start", deadline_s=5).data == BODY


def test_credentials_stay_with_their_origin(server: FaultyServer, tmp_path: Path) -> None:
    transport = make_transport(credentials=Credentials({server.url: ("user", "päss")}))
    with FaultyServer(tmp_path) as other:
        server.misbehave(servers.redirect(f"{other.url}/blob"), path="/away")
        server.misbehave(servers.redirect("/blob"), path="/near")
        for path in ("/away", "/near"):
            get(transport, f"{server.url}{path}")
        assert {exchange.headers["authorization"] for exchange in server.seen} == {"Basic dXNlcjpww6Rzcw=="}
        assert "authorization" not in other.seen[0].headers
    transport.close()


def test_what_was_encrypted_stays_encrypted(tls_server: FaultyServer, certificate: Path, server: FaultyServer) -> None:
    transport = make_transport(ca_file=str(certificate))
    tls_server.misbehave(servers.redirect(f"{server.url}/blob"), path="/down")
    server.misbehave(servers.redirect(f"{tls_server.url}/blob"), path="/up")
    with pytest.raises(StatusError, match="redirect"):
        get(transport, f"{tls_server.url}/down")
    assert not server.requests
    assert get(transport, f"{server.url}/up").data == BODY
    transport.close()


CREDENTIALS = """
["https://software.example.org"]
token = "t0p"
["http://proxy.example.org:3128"]
user = "node"
password = "s3cret"
"""


def write_credentials(directory: Path, text: str, mode: int = 0o600) -> Path:
    path = directory / "credentials.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_credentials_file(tmp_path: Path) -> None:
    credentials = load_credentials(write_credentials(tmp_path, CREDENTIALS))
    assert credentials.find("https://software.example.org/data/ab/cd") == "Bearer t0p"
    assert credentials.find("http://PROXY.example.org:3128") == "Basic bm9kZTpzM2NyZXQ="
    for other in ("http://software.example.org/", "https://software.example.org:8443/", "https://example.org/"):
        assert credentials.find(other) is None
    assert "t0p" not in repr(credentials)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        (CREDENTIALS, 0o640),
        (CREDENTIALS, 0o604),
        (CREDENTIALS + "s3cret", 0o600),
        ('["software.example.org"]\ntoken = "s3cret"', 0o600),
        ('["http://a/path"]\ntoken = "s3cret"', 0o600),
        ('["file:///"]\ntoken = "s3cret"', 0o600),
        ('["http://a"]\ntoken = "s3cret"\nuser = "s3cret"', 0o600),
        ('["http://a"]\nuser = "s3:cret"\npassword = "s3cret"', 0o600),
        ('["http://a"]\ntoken = "s3cret\\n"', 0o600),
        ('["http://a"]\ntoken = 3', 0o600),
        ('"http://a" = "s3cret"', 0o600),
    ],
)
def test_credentials_file_that_is_not_taken(tmp_path: Path, text: str, mode: int) -> None:
    path = write_credentials(tmp_path, text, mode)
    with pytest.raises(ConfigError) as caught:
        load_credentials(path)
    message = str(caught.value)
    assert str(path) in message
    assert "s3" not in message
    assert "\n" not in message


def test_credentials_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_credentials(tmp_path / "none")


def test_bearer_token(server: FaultyServer) -> None:
    transport = make_transport(credentials=Credentials({server.url: "secret"}))
    get(transport, f"{server.url}/blob")
    assert server.seen[0].headers["authorization"] == "Bearer secret"
    transport.close()


def test_closing_closes_connections_also_of_what_has_failed(tls_server: FaultyServer, certificate: Path) -> None:
    transport = make_transport(ca_file=str(certificate))
    tls_server.misbehave(servers.redirect("http://127.0.0.1:1/"), path="/down")
    with pytest.raises(StatusError) as kept:
        get(transport, f"{tls_server.url}/down")
    get(transport, f"{tls_server.url}/blob")
    transport.close()
    tls_server.wait_until(lambda: tls_server.open_connections == 0)
    assert kept.value.__traceback__


def test_cookies_and_netrc_are_not_used(
    server: FaultyServer, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.misbehave(servers.status("200 OK", "Set-Cookie: a=b\r\n"), times=1)
    for _ in range(2):
        get(transport, f"{server.url}/blob")
    assert not {"cookie", "authorization"} & set(server.seen[1].headers)


# Proxies and TLS


def test_proxy_is_asked_for_the_whole_address(server: FaultyServer, transport: Transport) -> None:
    assert get(transport, "http://mirror.example/blob", proxy=server.url).data == BODY
    assert server.requests == {"http://mirror.example/blob": 1}


def test_proxy_of_the_environment(server: FaultyServer, transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "direct.invalid")
    get(transport, "http://mirror.example/blob")
    for host in ("127.0.0.1", "localhost"):  # not through it: this machine itself
        get(transport, f"http://{host}:{server.port}/blob")
    with pytest.raises(UnreachableError):
        get(transport, "http://direct.invalid/blob")
    assert server.requests == {"http://mirror.example/blob": 1, "/blob": 2}
    with pytest.raises(UnreachableError):
        get(transport, "http://mirror.invalid/blob", proxy=DIRECT)


def test_dead_proxy(transport: Transport) -> None:
    with servers.refusing_port() as port:
        for scheme in ("http", "https"):
            with pytest.raises(ProxyError, match=f"127.0.0.1:{port}: connection refused"):
                get(transport, f"{scheme}://mirror.example/blob", proxy=f"http://127.0.0.1:{port}")


def test_proxy_that_takes_no_connection(transport: Transport) -> None:
    transport = make_transport(connect_timeout_s=0.1)
    with servers.silent_port() as port, pytest.raises(ProxyError, match="no connection"):
        get(transport, "http://mirror.example/blob", proxy=f"http://127.0.0.1:{port}")
    transport.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_that_refuses_this_client(server: FaultyServer, transport: Transport, scheme: str) -> None:
    server.misbehave(servers.status("407 Proxy Authentication Required"))
    with pytest.raises(ProxyError, match="407"):
        get(transport, f"{scheme}://mirror.example/blob", proxy=server.url)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("line", "retryable"), [("503 Service Unavailable", True), ("403 Forbidden", False)])
def test_what_a_proxy_says_of_a_server_is_not_its_own_fault(
    server: FaultyServer, transport: Transport, scheme: str, line: str, retryable: bool
) -> None:
    server.misbehave(servers.status(line))
    with pytest.raises(StatusError, match=line[:3]) as caught:
        get(transport, f"{scheme}://mirror.example/blob", proxy=server.url)
    assert caught.value.retryable == retryable


def test_credentials_of_a_proxy_are_for_it_alone(server: FaultyServer) -> None:
    transport = make_transport(credentials=Credentials({server.url: ("node", "secret")}))
    get(transport, "http://mirror.example/blob", proxy=server.url)
    headers = server.seen[0].headers
    assert headers["proxy-authorization"] == "Basic bm9kZTpzZWNyZXQ="
    assert "authorization" not in headers
    server.misbehave(servers.status("503 Oops"))
    with pytest.raises(StatusError):
        get(transport, "https://mirror.example/blob", proxy=server.url)
    assert server.seen[1].path == "mirror.example:443"
    assert server.seen[1].headers["proxy-authorization"] == "Basic bm9kZTpzZWNyZXQ="
    transport.close()


def test_proxy_hanging_in_a_tunnel(server: FaultyServer, transport: Transport) -> None:
    server.misbehave(servers.drip_head())

    async def fetch_and_wait() -> None:
        with pytest.raises(TooSlowError):
            await transport.get("https://mirror.example/blob", max_bytes=10, deadline_s=0.3, proxy=server.url)
        await wait_until_idle(transport)

    assert elapsed_s(lambda: trio.run(fetch_and_wait)) < 0.3 + SLACK_S


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(servers.make_certificate("127.0.0.1"))
    return path


@pytest.fixture
def tls_server(tmp_path: Path, certificate: Path) -> Iterator[FaultyServer]:
    (tmp_path / "blob").write_bytes(BODY)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with FaultyServer(tmp_path, context=context) as running:
        yield running


def test_tls_with_own_certificates(tls_server: FaultyServer, certificate: Path) -> None:
    transport = make_transport(ca_file=str(certificate))
    for _ in range(3):
        assert get(transport, f"{tls_server.url}/blob", exact_bytes=len(BODY)).data == BODY
    assert tls_server.connections == 1
    transport.close()


def test_tls_with_a_stranger_or_another_name(tls_server: FaultyServer, certificate: Path, transport: Transport) -> None:
    with pytest.raises(UnreachableError, match="certificate"):
        get(transport, f"{tls_server.url}/blob")
    own = make_transport(ca_file=str(certificate))
    with pytest.raises(UnreachableError, match="certificate"):
        get(own, f"https://localhost:{tls_server.port}/blob")
    assert not tls_server.requests
    own.close()


@pytest.mark.parametrize("fault", [servers.hang, servers.hang_in_body(1000), servers.drip()], ids=["", "body", "drip"])
def test_total_deadline_over_tls(tls_server: FaultyServer, certificate: Path, fault: servers.Fault) -> None:
    transport = make_transport(ca_file=str(certificate))
    tls_server.misbehave(fault)

    async def fetch_and_wait() -> None:
        with pytest.raises(TooSlowError):
            await transport.get(f"{tls_server.url}/blob", max_bytes=len(BODY), deadline_s=0.4)
        await wait_until_idle(transport)

    assert elapsed_s(lambda: trio.run(fetch_and_wait)) < 0.4 + SLACK_S
    transport.close()


def test_plain_http_where_tls_is_expected(server: FaultyServer) -> None:
    transport = make_transport(connect_timeout_s=0.2)
    with pytest.raises(UnreachableError):
        get(transport, f"https://127.0.0.1:{server.port}/blob")


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_ca_file_that_cannot_be_used(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        make_transport(ca_file=str(path))


# Files


def test_file(tmp_path: Path, transport: Transport) -> None:
    path = tmp_path / "bl ob%"
    path.write_bytes(BODY)
    url = f"file://{tmp_path}/bl%20ob%25"
    first = get(transport, url, exact_bytes=len(BODY))
    assert first.data == BODY
    assert get(transport, url, etag=first.etag).not_modified
    path.write_bytes(b"changed")
    assert get(transport, url, etag=first.etag).data == b"changed"
    with pytest.raises(TooLargeError):
        get(transport, url, max_bytes=6)
    with pytest.raises(TruncatedError):
        get(transport, url, exact_bytes=8)


def test_file_that_is_not_there_or_not_a_file(tmp_path: Path, transport: Transport) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"")
    for name in ("missing", "fifo", "file/below", ""):
        with pytest.raises(StatusError, match="404"):
            get(transport, f"file://{tmp_path}/{name}")
    with pytest.raises(UnreachableError):
        get(transport, f"file://{tmp_path}/{'x' * 300}")


# Addresses


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host/path",
        "/path",
        "ftp://host/",
        "http://",
        "http:///path",
        "http://host:port/",
        "http://host:0/",
        "http://host:99999/",
        "http://[::1/",
        "http://user:pw@host/",
        "http://user@host/",
        "http://ho st/",
        "http://host/a\nb",
        "http://host\\path",
        "http://" + "a" * 70 + ".example/",
        "http://a..b/",
        "file://host/path",
        "file://path",
        "file:path",
        "file:///a%00b",
    ],
)
def test_bad_address_is_one_line(transport: Transport, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get(transport, url)
    assert "\n" not in str(caught.value)
    assert transport.statistics().requests == 0


def test_base_address() -> None:
    assert check_base_url("https://host/a//") == "https://host/a"
    for url in ("http://host/?a", "http://host/#a"):
        with pytest.raises(ConfigError):
            check_base_url(url)


@given(st.text())
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    for candidate in (text, "http://" + text, "file:///" + text):
        with contextlib.suppress(ConfigError):
            assert check_url(candidate) == candidate


@given(st.text())
def test_any_location_is_followed_to_http_or_not_at_all(text: str) -> None:
    target = find_redirect("http://host/a", text)
    assert target is None or target.startswith(("http://", "https://"))


def test_origin() -> None:
    assert origin_of("http://HOST/a?b#c") == origin_of("http://host:80") == "http://host:80"
    assert origin_of("https://[::1]/") == "https://[::1]:443"
    assert origin_of("file:///a") == "file://"
    others = ("https://host/a", "http://host:81/a", "http://other/a", "http://host.other/a", "http://host@evil/")
    assert "http://host:80" not in map(origin_of, others)


@pytest.mark.parametrize(
    "address", ["squid:3128", "https://squid:3128", "http://squid/x", "http://a:b@squid", "direct"]
)
def test_proxy_address_that_cannot_be(address: str) -> None:
    with pytest.raises(ConfigError):
        check_proxy(address)


def test_proxy_addresses() -> None:
    assert [check_proxy(proxy) for proxy in ("http://squid:3128/", DIRECT, ENVIRONMENT)] == [
        "http://squid:3128",
        DIRECT,
        ENVIRONMENT,
    ]
