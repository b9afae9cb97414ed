"""publisher.server over real sockets: what it gives, what it does not, and how it stops."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cvfs.errors import ConfigError, StoreError
from publisher.server.http_server import StoreServer

NAME = "data/ab/" + "c" * 62
BODY = os.urandom(3_000_000)  # more than a socket buffer


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store, and beside it a secret."""
    (tmp_path / "secret").write_bytes(b"secret")
    store = tmp_path / "store"
    for name, content in (
        (NAME, BODY),
        ("metadata/timestamp.json", b"{}"),
        ("metadata/1.root.json", b"[]"),
        ("lock", b""),
    ):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(content)
    return store


@pytest.fixture
def server(store: Path) -> Iterator[StoreServer]:
    with StoreServer(store) as running:
        yield running


@pytest.fixture
def client(server: StoreServer) -> Iterator[http.client.HTTPConnection]:
    with closing(connect(server.url)) as connection:
        yield connection


def connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)


def ask(
    client: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    client.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = client.getresponse()
    return response.status, response.read(), response.headers


def raw(url: str, data: bytes) -> bytes:
    """All that the server answers to `data` until it closes the connection."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=10) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_blob_is_immutable(client: http.client.HTTPConnection) -> None:
    status, body, headers = ask(client, f"/{NAME}")
    assert (status, body == BODY) == (200, True)
    assert headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert headers["ETag"] == '"ab' + "c" * 62 + '"'
    assert int(headers["Content-Length"]) == len(BODY)
    assert ask(client, f"/{NAME}", If_None_Match=headers["ETag"])[:2] == (304, b"")


def test_head_is_to_be_asked_for_again_and_changes_its_etag(client: http.client.HTTPConnection, store: Path) -> None:
    status, body, headers = ask(client, "/metadata/timestamp.json")
    assert (status, body, headers["Content-Type"]) == (200, b"{}", "application/json")
    assert headers["Cache-Control"].endswith("must-revalidate")
    first = headers["ETag"]
    for condition in (first, f'"x", W/{first}', "*"):
        assert ask(client, "/metadata/timestamp.json", If_None_Match=condition)[:2] == (304, b"")
    (store / "new").write_bytes(b"{ }")
    (store / "new").rename(store / "metadata/timestamp.json")
    status, body, headers = ask(client, "/metadata/timestamp.json", If_None_Match=first)
    assert (status, body) == (200, b"{ }")
    assert headers["ETag"] != first


def test_metadata(client: http.client.HTTPConnection) -> None:
    assert ask(client, "/metadata/1.root.json?x=y")[:2] == (200, b"[]")


@pytest.mark.parametrize("path", [f"/{NAME}", "/metadata/timestamp.json", "/missing"])
def test_method_head_says_the_same_without_a_body(client: http.client.HTTPConnection, path: str) -> None:
    status, _, headers = ask(client, path)
    head_status, body, head_headers = ask(client, path, "HEAD")
    assert (head_status, body, head_headers["Content-Length"]) == (status, b"", headers["Content-Length"])


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/data/",
        "/data/ab",
        "/lock",
        "/secret",
        "/../secret",
        "/data/../../secret",
        "/metadata/../../secret",
        "/%2e%2e/secret",
        "/metadata/..%2f..%2fsecret.json",
        "/metadata/..json",
        "/metadata/.hidden.json",
        "/metadata/a/b.json",
        "/data/AB/" + "C" * 62,
        "/data/ab/" + "c" * 61,
        "/data/ab/" + "c" * 63,
        "/data/ab/" + "d" * 62,
        f"/{NAME}/x",
        f"/{NAME}%00",
        "metadata/timestamp.json%0a",
        "*",
    ],
)
def test_nothing_else_is_there(client: http.client.HTTPConnection, path: str) -> None:
    assert ask(client, path)[0] == 404
    assert ask(client, "/metadata/timestamp.json")[:2] == (200, b"{}")


def link_file(store: Path) -> str:
    (store / "metadata/a.json").symlink_to("../../secret")
    return "/metadata/a.json"


def link_directory(store: Path) -> str:
    (store.parent / "outside").mkdir()
    (store.parent / "outside" / ("c" * 62)).write_bytes(b"secret")
    (store / "data/ee").symlink_to("../../outside")
    return "/data/ee/" + "c" * 62


def link_top(store: Path) -> str:
    (store / "data").rename(store.parent / "elsewhere")
    (store / "data").symlink_to("../elsewhere")
    return f"/{NAME}"


def make_fifo(store: Path) -> str:
    os.mkfifo(store / "metadata/a.json")
    return "/metadata/a.json"


def make_directory(store: Path) -> str:
    (store / "metadata/a.json").mkdir()
    return "/metadata/a.json"


@pytest.mark.parametrize("make", [link_file, link_directory, link_top, make_fifo, make_directory])
def test_links_and_special_files_are_not_served(
    client: http.client.HTTPConnection, store: Path, make: Callable[[Path], str]
) -> None:
    status, body, _ = ask(client, make(store))
    assert status in (403, 404)
    assert b"secret" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "BREW"])
def test_other_methods(server: StoreServer, method: str) -> None:
    answer = raw(server.url, f"{method} /metadata/timestamp.json HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    ],
)
def test_bad_requests_end_their_own_connection(server: StoreServer, data: bytes) -> None:
    try:
        answer = raw(server.url, data)
    except ConnectionResetError:  # closed with bytes unread
        answer = b"HTTP/1.1 4"
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505"))
    with closing(connect(server.url)) as client:
        assert ask(client, "/metadata/timestamp.json")[0] == 200


def test_body_of_a_request_is_not_taken_for_the_next_request(server: StoreServer) -> None:
    inner = b"GET /metadata/timestamp.json HTTP/1.1\r\n\r\n"
    outer = b"GET /metadata/timestamp.json HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(inner)
    try:
        answer = raw(server.url, outer + inner)
    except ConnectionResetError:
        answer = b""
    assert answer.count(b"HTTP/1.1 200") <= 1
    assert server.statistics().requests == 1


def test_http_1_0_ends_the_connection(server: StoreServer) -> None:
    answer = raw(server.url, b"GET /metadata/timestamp.json HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"Connection: close\r\n\r\n{}")


def test_pipelined_requests_are_answered_in_order(server: StoreServer) -> None:
    one = b"GET /%b HTTP/1.1\r\n\r\n"
    answer = raw(server.url, one % b"metadata/timestamp.json" + one % NAME.encode() + b"GET /lock HTTP/1.0\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200") == 2
    assert BODY in answer


def test_keep_alive_counts_and_log(store: Path) -> None:
    lines: list[str] = []
    with StoreServer(store, log=lines.append) as server, closing(connect(server.url)) as client:
        for _ in range(3):
            ask(client, f"/{NAME}")
        ask(client, "/missing")
        assert server.statistics().connections == 1
    assert (server.statistics().requests, server.statistics().sent_bytes) == (4, 3 * len(BODY))
    assert lines[-1] == "127.0.0.1 'GET /missing HTTP/1.1' 404 0"
    assert lines[0].endswith(f"200 {len(BODY)}")


def test_log_line_cannot_be_forged(store: Path) -> None:
    lines: list[str] = []
    with StoreServer(store, log=lines.append) as server:
        raw(server.url, b"GET /\x1b[2J\r\x0b HTTP/1.0\r\n\r\n")
    assert lines
    assert all(line.isprintable() for line in lines)


def test_many_connections_at_once(server: StoreServer) -> None:
    bodies: list[bool] = []

    def fetch() -> None:
        with closing(connect(server.url)) as client:
            bodies.extend(ask(client, f"/{NAME}")[1] == BODY for _ in range(3))

    threads = [threading.Thread(target=fetch) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bodies == [True] * 48


def test_file_that_shrinks_while_it_is_sent(server: StoreServer, store: Path) -> None:
    big = 50_000_000
    os.truncate(store / NAME, big)
    with closing(connect(server.url)) as client:
        client.request("GET", f"/{NAME}")
        response = client.getresponse()
        os.truncate(store / NAME, 0)
        with pytest.raises(http.client.IncompleteRead):
            response.read()


def test_ipv6(store: Path) -> None:
    with StoreServer(store, "::1") as server, closing(connect(server.url)) as client:
        assert server.url.startswith("http://[::1]:")
        assert ask(client, "/metadata/timestamp.json")[0] == 200


@pytest.mark.parametrize(("host", "clients"), [("::", ["127.0.0.1", "::1"]), ("0.0.0.0", ["127.0.0.1"])])
def test_all_addresses(store: Path, host: str, clients: list[str]) -> None:
    with StoreServer(store, host) as server:
        port = urlsplit(server.url).port
        for address in clients:
            with closing(http.client.HTTPConnection(address, port, timeout=5)) as client:
                assert ask(client, "/metadata/timestamp.json")[0] == 200


def test_address_that_cannot_be_listened_on_is_one_line(store: Path, server: StoreServer) -> None:
    port = urlsplit(server.url).port or 0
    with pytest.raises(ConfigError) as caught:
        StoreServer(store, port=port)
    assert str(caught.value) == f"cannot listen on 127.0.0.1 port {port}: Address already in use"
    for host, number in (("no-such-host.invalid", 0), ("192.0.2.1", 0), ("127.0.0.1", 99_999), ("127.0.0.1", -1)):
        with pytest.raises(ConfigError, match="cannot listen on"):
            StoreServer(store, host, number)


def test_what_is_not_a_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(StoreError, match="cannot serve"):
            StoreServer(path)


def test_close_lets_an_answer_finish_and_ends_idle_connections(store: Path) -> None:
    server = StoreServer(store)
    idle, busy = connect(server.url), connect(server.url)
    ask(idle, "/metadata/timestamp.json")
    os.truncate(store / NAME, 50_000_000)
    busy.request("GET", f"/{NAME}")
    response = busy.getresponse()
    closer = threading.Thread(target=server.close)
    closer.start()
    assert len(response.read()) == 50_000_000
    closer.join(3)
    assert not closer.is_alive()
    assert server.statistics().connections == 0
    with pytest.raises(ConnectionRefusedError):
        ask(connect(server.url), "/metadata/timestamp.json")
    idle.close()
    busy.close()


def test_close_cuts_a_client_that_takes_nothing(store: Path) -> None:
    os.truncate(store / NAME, 50_000_000)
    server = StoreServer(store)
    with closing(connect(server.url)) as client:
        client.request("GET", f"/{NAME}")
        client.getresponse()
        server.close(grace_s=0.1)
        assert server.statistics().connections == 0


def test_nothing_stays_open(store: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(3):
        with StoreServer(store) as server, closing(connect(server.url)) as client:
            for path in (f"/{NAME}", "/metadata/timestamp.json", "/data/ff/" + "f" * 62, "/metadata/x.json"):
                ask(client, path)
    assert count() == before


PROGRAM = (
    "import sys; from publisher.server.http_server import serve; "
    "print(serve(sys.argv[1], announce=lambda u: print(u, flush=True)))"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_the_program_gracefully(store: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM, str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        url = program.stdout.readline().strip()
        with closing(connect(url)) as client:
            assert ask(client, "/metadata/timestamp.json")[0] == 200
            program.send_signal(number)
            out, err = program.communicate(timeout=10)
    assert (program.returncode, err) == (0, "")
    assert "requests=1" in out
