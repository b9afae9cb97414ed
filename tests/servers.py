"""An HTTP server on a real socket that misbehaves on demand, and ports that do not answer.

    with FaultyServer(directory) as server:
        server.misbehave(truncate(100), path="/manifest.json", times=1)
        ... server.url ... server.requests["/manifest.json"]

A fault is called with the `Exchange` and writes to its connection whatever it likes; then the connection is closed,
unless the fault says that it may be kept.
"""

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass
class Exchange:
    """One request: its path and headers (lower case), the body that a good server would send, and the connection."""

    path: str
    headers: dict[str, str]
    body: bytes | None
    connection: socket.socket
    stopping: threading.Event
    keep: bool = False
    sent_bytes: int = 0

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)
        self.sent_bytes += len(data)

    def answer(self, status: str = "200 OK", body: bytes = b"", length: int | None = None, extra: str = "") -> None:
        """A whole answer; the connection is kept if its length is the true one."""
        size = len(body) if length is None else length
        self.send(f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{extra}\r\n".encode() + body)
        self.keep = size == len(body)

    def hang(self) -> None:
        """Until the client leaves or the server is stopped."""
        with contextlib.suppress(OSError):
            self.connection.recv(1)


Fault = Callable[[Exchange], None]


def behave(exchange: Exchange) -> None:
    """What a good server does."""
    if exchange.body is None:
        exchange.answer("404 Not Found", b"no such file\n")
    elif exchange.headers.get("if-none-match") == f'"{zlib.crc32(exchange.body):x}"':
        exchange.send(b"HTTP/1.1 304 Not Modified\r\n\r\n")
        exchange.keep = True
    else:
        exchange.answer(body=exchange.body, extra=f'ETag: "{zlib.crc32(exchange.body):x}"\r\n')


def status(line: str, extra: str = "", body: bytes = b"") -> Fault:
    """`line` is "503 Service Unavailable"; `extra` are headers, each ended by CRLF."""
    return lambda exchange: exchange.answer(line, body, extra=extra)


def redirect(target: str) -> Fault:
    return status("302 Found", f"Location: {target}\r\n", b"moved")


def html(exchange: Exchange) -> None:
    """200, but a page for people: a captive portal, a wrong address."""
    exchange.answer(body=b"<!DOCTYPE html><html>please log in</html>", extra="Content-Type: text/html\r\n")


def truncate(size: int) -> Fault:
    """Announce the whole body, send `size` bytes of it."""
    return lambda exchange: exchange.answer(body=_body(exchange)[:size], length=len(_body(exchange)))


def claim(length: int) -> Fault:
    """Announce `length` bytes, send the body, and close."""
    return lambda exchange: exchange.answer(body=_body(exchange), length=length)


def shorten(size: int) -> Fault:
    """A stored file that was cut: length and body agree."""
    return lambda exchange: exchange.answer(body=_body(exchange)[:size])


def grow(size: int) -> Fault:
    return lambda exchange: exchange.answer(body=_body(exchange) + bytes(size))


def flip(position: int) -> Fault:
    """One bit of the body is wrong."""

    def fault(exchange: Exchange) -> None:
        body = bytearray(_body(exchange))
        body[position] ^= 1
        exchange.answer(body=bytes(body))

    return fault


def hang(exchange: Exchange) -> None:
    """Accept the request and say nothing."""
    exchange.hang()


def hang_in_body(size: int) -> Fault:
    """Send the head and `size` bytes, then nothing."""

    def fault(exchange: Exchange) -> None:
        exchange.answer(body=_body(exchange)[:size], length=len(_body(exchange)))
        exchange.hang()

    return fault


def drip(interval_s: float = 0.02) -> Fault:
    """The head at once, then byte after byte of the body."""

    def fault(exchange: Exchange) -> None:
        exchange.answer(length=len(_body(exchange)))
        _drip(exchange, _body(exchange), interval_s)

    return fault


def drip_head(interval_s: float = 0.02) -> Fault:
    """Byte after byte of a header that does not end."""

    def fault(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
        _drip(exchange, b"x" * 60_000, interval_s)

    return fault


def endless(exchange: Exchange) -> None:
    """A body without an announced length that goes on until the client leaves."""
    exchange.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    _stream(exchange)


def endless_redirect(target: str) -> Fault:
    """A redirect whose own body does not end."""

    def fault(exchange: Exchange) -> None:
        exchange.send(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nConnection: close\r\n\r\n".encode())
        _stream(exchange)

    return fault


def chunked(chunk_bytes: int = 1000, end: bytes = b"0\r\n\r\n") -> Fault:
    """The body in chunks; another `end` breaks it."""

    def fault(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        body = _body(exchange)
        for start in range(0, len(body), chunk_bytes):
            chunk = body[start : start + chunk_bytes]
            exchange.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        exchange.send(end)
        exchange.keep = end == b"0\r\n\r\n"

    return fault


def unannounced(exchange: Exchange) -> None:
    """The body without a length: it ends with the connection."""
    exchange.send(b"HTTP/1.0 200 OK\r\n\r\n" + _body(exchange))


def raw(data: bytes) -> Fault:
    """Exactly these bytes."""
    return lambda exchange: exchange.send(data)


def _body(exchange: Exchange) -> bytes:
    assert exchange.body is not None, f"no file for {exchange.path}"
    return exchange.body


def _drip(exchange: Exchange, data: bytes, interval_s: float) -> None:
    for position in range(len(data)):
        exchange.send(data[position : position + 1])
        if exchange.stopping.wait(interval_s):
            return


def _stream(exchange: Exchange) -> None:
    while not exchange.stopping.is_set():
        exchange.send(bytes(65536))


@dataclass
class _Rule:
    fault: Fault
    path: str | None
    times: int | None


@dataclass
class FaultyServer:
    """Serves `directory` on loopback, in threads, as its faults say; counts `requests` and `sent_bytes` by path."""

    directory: Path
    context: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    requests: Counter[str] = field(default_factory=Counter)
    sent_bytes: Counter[str] = field(default_factory=Counter)
    seen: list[Exchange] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0
    port: int = 0
    _rules: list[_Rule] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.context else 'http'}://{host}:{self.port}"

    def misbehave(self, fault: Fault, path: str | None = None, times: int | None = None) -> None:
        """From now on `fault` answers requests for `path` (None: all), `times` times (None: until `recover`)."""
        self._rules.insert(0, _Rule(fault, path, times))

    def recover(self) -> None:
        """From now on behave well."""
        self._rules.clear()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 5) -> None:
        """Until `condition` holds; it is looked at whenever a request or a connection begins or ends."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s), "the condition did not come true"

    def __enter__(self) -> "FaultyServer":
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, self.port), family=family, backlog=128)
        self.port = self._listener.getsockname()[1]
        self._stopping.clear()
        self._threads = [threading.Thread(target=self._accept)]
        self._open: set[socket.socket] = set()
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        """Refuse from now on; the port stays the same if the server is entered again."""
        self._stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        with self._changed:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, self._counted(connection), contextlib.suppress(OSError):
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as stream:
                while self._serve_one(connection, stream):
                    pass

    @contextlib.contextmanager
    def _counted(self, connection: socket.socket) -> Iterator[None]:
        with self._changed:
            self.connections += 1
            self.open_connections += 1
            self._open.add(connection)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self.open_connections -= 1
                self._open.discard(connection)
                self._changed.notify_all()

    def _serve_one(self, connection: socket.socket, stream: Iterator[bytes]) -> bool:
        head = [line.decode("latin-1").strip() for line in iter(lambda: next(stream, b"\r\n"), b"\r\n")]
        if not head or head[0].count(" ") != 2:  # it has left, or speaks something else
            return False
        path = head[0].split(" ")[1]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        exchange = Exchange(path, headers, self._read(path), connection, self._stopping)
        with self._changed:
            self.requests[path] += 1
            self.seen.append(exchange)
            fault = self._choose(path)
            self._changed.notify_all()
        try:
            fault(exchange)
        finally:
            self.sent_bytes[path] += exchange.sent_bytes
        return exchange.keep

    def _choose(self, path: str) -> Fault:
        for rule in self._rules:
            if rule.path in (None, path) and rule.times != 0:
                if rule.times is not None:
                    rule.times -= 1
                return rule.fault
        return behave

    def _read(self, path: str) -> bytes | None:
        file = self.directory / unquote(urlsplit(path).path).lstrip("/")  # a client of a proxy sends the whole address
        return file.read_bytes() if file.is_file() else None


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port of 127.0.0.1 where every connection is refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, so nobody else gets it, but not listening
        yield bound.getsockname()[1]


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port of 127.0.0.1 where a connection is neither made nor refused: the queue of its listener is full."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.contextmanager
def mute_port() -> Iterator[int]:
    """A port of 127.0.0.1 where connections are made and then nothing is ever read or said: also hangs in TLS."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


@dataclass(frozen=True)
class Authority:
    """One that signs certificates; `pem` is what those who believe it need."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def make_authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _common_name("test authority")
    builder = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def make_certificate(address: str, authority: Authority | None = None) -> bytes:
    """A certificate for an IP address, and its key, in PEM; signed by the authority, else by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _common_name("test")
    issuer, issuer_key = (authority.certificate.subject, authority.key) if authority else (name, key)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    signed = _builder(name, issuer, key).add_extension(names, critical=False).sign(issuer_key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return signed.public_bytes(serialization.Encoding.PEM) + private


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _builder(name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    """Of a certificate that is valid today."""
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
    return builder.not_valid_before(now - day).not_valid_after(now + day)
