"""One request as its worker thread sees it: what may arrive, until when, and how its caller wakes it.

Three things end a thread that a server keeps waiting. Between two blocks it asks trio whether its caller still waits
and looks at the clock; every socket timeout is cut to what is left; and a caller that leaves shuts the socket down,
which ends a blocked connect, handshake or read at once, a header sent byte by byte too. Only getaddrinfo cannot be
woken: it ends at the resolver's own timeout, and keeps its place in the limiter until then.
"""

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from cvfs.errors import TooLargeError, TooSlowError, TruncatedError
from cvfs.transport.connect import Connector

BLOCK_BYTES = 256 * 1024


class Attempt:
    """A GET of `url` that may bring `limit_bytes` (exactly that many, if `exact`) until `deadline`.

    `deadline` is in time.monotonic(). Made by the caller, used by one worker thread; `abort` alone is for the caller.
    What is known of its course: `begun`, a thread has it; `reached`, a server or proxy took the connection;
    `connected`, that can be used; `asked_at`, when the question was sent; `answered`, its body has begun.
    """

    # One lock for all: a kept-alive connection passes from one attempt to the next.
    _ownership = threading.Lock()

    def __init__(self, url: str, *, limit_bytes: int, exact: bool, deadline: float, read_timeout_s: float) -> None:
        self.url = url
        self.received_bytes = 0
        self.begun = self.reached = self.connected = self.answered = self.reuses = False
        self.asked_at = time.monotonic()
        self._limit_bytes, self._exact = limit_bytes, exact
        self._deadline, self._read_timeout_s = deadline, read_timeout_s
        self._aborted = False
        self._socket: socket.socket | None = None
        self._connection: Any = None

    def time_left_s(self) -> float:
        """Seconds until the deadline, more than 0.

        Raises TooSlowError after the deadline, trio.Cancelled when the caller has left.
        """
        trio.from_thread.check_cancelled()
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise self.too_slow("the deadline has passed")
        return left_s

    def is_late(self) -> bool:
        return time.monotonic() >= self._deadline

    def too_slow(self, reason: str) -> TooSlowError:
        """The error that says so; `received_bytes` tells a slow server from a dead one."""
        return TooSlowError(self.url, f"{reason} ({self.received_bytes} bytes came)", self.received_bytes)

    def open_socket(self, connector: Connector, host: str, port: int, timeout_s: float, options: Any) -> socket.socket:
        """A TCP connection to the first address of `host` that answers within `timeout_s`. Raises OSError."""
        started = time.monotonic()
        timeout_s = min(timeout_s, self.time_left_s())
        opened = connector.connect(host, port, options or (), started + timeout_s, self._watch_connecting)
        opened.settimeout(min(timeout_s, self.time_left_s()))
        self.reached = True
        return opened

    def _watch_connecting(self, opened: socket.socket) -> None:
        self.time_left_s()  # a caller that has left has shut the last one down, to wake us
        self.watch(opened)

    def watch(self, watched: socket.socket, connection: Any = None) -> None:
        """From now on the request depends on `watched`, the socket of `connection` once that is usable.

        Raises OSError if the caller has left.
        """
        with self._ownership:
            if self._aborted:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self._socket, self._connection = watched, connection
            if connection is not None:
                connection.attempt = self
                self.connected = True

    def abort(self) -> None:
        """Wake the thread wherever it waits for the network, and make its next step fail. Never blocks."""
        with self._ownership:
            self._aborted = True
            passed_on = self._connection is not None and self._connection.attempt is not self
            if self._socket is None or passed_on:
                return
            # The base class's method: an SSLSocket's own would pull the TLS state from under the reading thread.
            with suppress(OSError, TypeError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def read_body(self, read: Callable[[int], bytes], announced_bytes: int | None) -> bytes:
        """All that `read(n)` gives until it gives b""; it must return what is there, not wait for n bytes.

        `announced_bytes` is what the server says the length is. Nothing is allocated by it: it can only make the
        request fail before the body is read. Raises TooLargeError, TruncatedError, TooSlowError.
        """
        self._check_announced(announced_bytes)
        blocks = []
        while announced_bytes is None or self.received_bytes < announced_bytes:
            self._cut_timeout()
            block = read(min(BLOCK_BYTES, self._limit_bytes - self.received_bytes + 1))
            if not block:
                break
            blocks.append(block)
            self.received_bytes += len(block)
            self._check_size(self.received_bytes)
        self._check_complete(announced_bytes)
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def _cut_timeout(self) -> None:
        left_s = self.time_left_s()
        if left_s < self._read_timeout_s and self._socket is not None:
            self._socket.settimeout(left_s)

    def _check_announced(self, announced_bytes: int | None) -> None:
        if announced_bytes is not None:
            self._check_size(announced_bytes)
            if self._exact and announced_bytes < self._limit_bytes:
                raise TruncatedError(self.url, f"{announced_bytes} bytes instead of {self._limit_bytes}")

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._limit_bytes:
            raise TooLargeError(self.url, f"more than {self._limit_bytes} bytes")

    def _check_complete(self, announced_bytes: int | None) -> None:
        wanted_bytes = self._limit_bytes if self._exact else announced_bytes or 0
        if self.received_bytes < wanted_bytes:
            raise TruncatedError(self.url, f"{self.received_bytes} bytes instead of {wanted_bytes}")
