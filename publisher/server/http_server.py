"""The embedded HTTP/1.1 server: a store for labs, demonstrations and benchmarks.

The standard library's handler parses requests and refuses bad ones, which needs no further library. A thread for each
kept-alive connection, an answer's head in one send and its body by sendfile(2) make it cheap enough not to hide what a
client costs. In production any web server will do.
"""

import errno
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from cvfs.errors import ConfigError, StoreError
from publisher.server.request_handler import StoreHandler

# Enforced by the kernel on a blocking socket: Python's own timeouts cost a poll(2) before each call.
_TIMEOUT_S = 75
_TIMEVAL = struct.pack("ll", _TIMEOUT_S, 0)
_BACKLOG = 256


@dataclass(frozen=True, slots=True)
class Statistics:
    """Since the start: requests answered (errors too), bytes of bodies sent, connections open just now."""

    requests: int
    sent_bytes: int
    connections: int


class StoreServer:
    """Serves the store in `directory` on `host`:`port` (0: any free port) in threads of its own, until closed.

    It listens once constructed; `url` is its address. `log` gets one line for each request.

    Raises StoreError: not a store. ConfigError: the address cannot be listened on.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self._log = log
        self.root = _open_store(directory)
        try:
            self._listener = _listen(host, port)
        except BaseException:
            os.close(self.root)
            raise
        self.url = _make_url(host, self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._requests = self._sent_bytes = 0
        self._closing = False
        self._acceptor = threading.Thread(target=self._accept, name="cvfs-serve", daemon=True)
        self._acceptor.start()

    def statistics(self) -> Statistics:
        """Counts at this moment. An answer is counted after it was sent; all are, once the server is closed."""
        with self._lock:
            return Statistics(self._requests, self._sent_bytes, len(self._connections))

    def record(self, line: str, sent_bytes: int) -> None:
        """One more request was answered, with a body of `sent_bytes`."""
        with self._lock:
            self._requests += 1
            self._sent_bytes += sent_bytes
        if self._log:
            self._log(line)

    def close(self, grace_s: float = 5.0) -> None:
        """Accept nothing more, let answers under way finish for `grace_s`, then cut them. Blocks; safe to repeat."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        _shut_down(self._listener, socket.SHUT_RDWR)  # wakes accept
        self._acceptor.join()
        self._listener.close()
        # No more requests can come: idle connections end now, busy ones after their answer.
        self._end_connections(socket.SHUT_RD, grace_s)
        self._end_connections(socket.SHUT_RDWR, 1.0)
        os.close(self.root)

    def _end_connections(self, how: int, patience_s: float) -> None:
        with self._lock:
            open_now = list(self._connections.items())
            for connection, _ in open_now:
                _shut_down(connection, how)
        deadline = time.monotonic() + patience_s
        for _, thread in open_now:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def closing(self) -> bool:
        return self._closing

    def __enter__(self) -> "StoreServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._listener.accept()
            except OSError as error:
                if self._closing:
                    return
                self._survive(error)
                continue
            self._start_connection(connection, address)

    def _survive(self, error: OSError) -> None:
        """Out of descriptors, or a client that left before it was accepted: neither may end the server."""
        if self._log:
            self._log(f"cannot accept a connection: {error.strerror}")
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            time.sleep(0.1)

    def _start_connection(self, connection: socket.socket, address: tuple[str, int]) -> None:
        thread = threading.Thread(target=self._serve, args=(connection, address), daemon=True)
        with self._lock:
            self._connections[connection] = thread
        try:
            thread.start()
        except RuntimeError:  # no more threads
            self._forget(connection)

    def _serve(self, connection: socket.socket, address: tuple[str, int]) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL)
            StoreHandler(connection, address, self)
        except OSError:
            pass  # the client has gone, or takes no bytes: the thread ends with its connection
        finally:
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            del self._connections[connection]
            connection.close()


def serve(
    directory: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    log: Callable[[str], None] | None = None,
    announce: Callable[[str], None] = print,
) -> Statistics:
    """Serve the store in `directory` until SIGTERM or SIGINT; `announce` gets the address once it can be used.

    Only for the main thread. Raises what StoreServer raises.
    """
    stop = threading.Event()
    with _handling(lambda *_: stop.set()), StoreServer(directory, host, port, log=log) as server:
        announce(server.url)
        stop.wait()
    return server.statistics()


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _open_store(directory: str | os.PathLike[str]) -> int:
    shown = os.fspath(directory)
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"cannot serve {shown!r}: {error.strerror}") from error
    if "metadata" not in os.listdir(root):
        os.close(root)
        raise StoreError(f"cannot serve {shown!r}: it is not a store (no metadata/ in it)")
    return root


def _listen(host: str, port: int) -> socket.socket:
    if port not in range(1 << 16):  # getaddrinfo would take it modulo 65536
        raise ConfigError(f"cannot listen on port {port}: there is no such port")
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return socket.create_server(
            address[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=family == socket.AF_INET6 and host == "::"
        )
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {host or '*'} port {port}: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    number = getattr(error, "errno", None) or 0  # negative: getaddrinfo's own
    return os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)


def _make_url(host: str, port: int) -> str:
    """An address that a client on this machine can use; 127.0.0.1 stands for all addresses."""
    shown = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _shut_down(connection: socket.socket, how: int) -> None:
    with suppress(OSError):  # the other side was faster
        connection.shutdown(how)
