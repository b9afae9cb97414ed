"""TCP connections to hosts with several addresses: one that does not answer costs a quarter of a second (RFC 8305).

All addresses of a host are tried, each begun when the one before has failed or has had `STAGGER_S`, IPv6 and IPv4 in
turn, and the first that answers is taken. What a resolver said last is used again while it says nothing.
"""

import errno
import math
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, zip_longest
from typing import Any

from cvfs.transport.recent import Recent

STAGGER_S = 0.25
"""After which the next address is tried as well: what RFC 8305 recommends."""

Address = tuple[socket.AddressFamily, socket.SocketKind, int, Any]
"""Family, kind, protocol, and what connect(2) takes."""

Watch = Callable[[socket.socket], None]
"""Called with the socket that is waited for, and with the connected one; raises to end the whole."""


class Connector:
    """Makes connections, for many threads. Remembers for each host which family answered, and the last addresses.

    What is sent on one of them and not even acknowledged within `unheard_s` went nowhere, and ends it: a slow server is
    another matter. It holds for the life of a connection, which is kept alive for later requests, so it has nothing to
    do with the time that the first one has left.
    """

    def __init__(self, unheard_s: float) -> None:
        self._unheard_ms = math.ceil(unheard_s * 1000)
        self._families: Recent[tuple[str, int], socket.AddressFamily] = Recent()
        self._known: Recent[tuple[str, int], list[Address]] = Recent()

    def connect(
        self, host: str, port: int, options: Iterable[tuple[Any, ...]], deadline: float, watch: Watch
    ) -> socket.socket:
        """A connection to `host` before `deadline`, which is in time.monotonic(). The socket is non-blocking.

        Raises OSError, TimeoutError among them, and whatever `watch` raises.
        """
        addresses = in_turns(self._resolve(host, port), self._families.get((host, port)))
        with_options = tuple(options)
        race = _Race(addresses, with_options, watch)
        try:
            connected = race.run(deadline)
        finally:
            race.close()
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._unheard_ms)
        self._families.put((host, port), connected.family)
        return connected

    def _resolve(self, host: str, port: int) -> list[Address]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror:
            known = self._known.get((host, port))
            if known is None:
                raise
            return known
        addresses: list[Address] = [(family, kind, protocol, address) for family, kind, protocol, _, address in found]
        self._known.put((host, port), addresses)
        return addresses


def in_turns(addresses: Iterable[Address], preferred: socket.AddressFamily | None) -> list[Address]:
    """The families by turns, each in the order of the resolver; `preferred` or else the resolver's first begins."""
    by_family: dict[socket.AddressFamily, list[Address]] = {}
    if preferred is not None:
        by_family[preferred] = []
    for address in addresses:
        by_family.setdefault(address[0], []).append(address)
    return [address for address in chain.from_iterable(zip_longest(*by_family.values())) if address is not None]


class _Race:
    def __init__(self, addresses: list[Address], options: tuple[tuple[Any, ...], ...], watch: Watch) -> None:
        self._waiting: Iterator[Address] = iter(addresses)
        self._more = bool(addresses)
        self._options, self._watch = options, watch
        self._running: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    def run(self, deadline: float) -> socket.socket:
        begin_at = 0.0
        while self._more or self._running:
            now = time.monotonic()
            if now >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            if self._more and (now >= begin_at or not self._running):
                begin_at = now + STAGGER_S
                if connected := self._begin():
                    return connected
                continue
            until = min(deadline, begin_at) if self._more else deadline
            if connected := self._wait(until - now):
                return connected
        raise self._failure

    def close(self) -> None:
        """Give up all that have not won."""
        for loser in self._running.values():
            loser.close()

    def _begin(self) -> socket.socket | None:
        """Try the next address; its socket if it is connected at once."""
        address = next(self._waiting, None)
        if address is None:
            self._more = False
            return None
        family, kind, protocol, target = address
        try:
            opened = socket.socket(family, kind, protocol)
        except OSError as error:  # a kernel without this family
            self._failure = error
            return None
        self._running[opened.fileno()] = opened
        opened.setblocking(False)
        for option in self._options:
            opened.setsockopt(*option)
        number = opened.connect_ex(target)
        if number == errno.EINPROGRESS:
            self._poll.register(opened, select.POLLOUT)
            return None
        return self._end(opened, number)

    def _wait(self, timeout_s: float) -> socket.socket | None:
        self._watch(next(reversed(self._running.values())))  # an event of any one ends the wait for all
        for descriptor, _ in self._poll.poll(timeout_s * 1000 + 1):
            opened = self._running[descriptor]
            self._poll.unregister(descriptor)
            if connected := self._end(opened, opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                return connected
        return None

    def _end(self, opened: socket.socket, number: int) -> socket.socket | None:
        if number == 0:
            self._watch(opened)
            return self._running.pop(opened.fileno())
        self._running.pop(opened.fileno()).close()
        self._failure = OSError(number, os.strerror(number))
        return None
