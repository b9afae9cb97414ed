"""The servers on the way to a repository, for `cvfs doctor`: name, port, certificate and clock of each."""

import email.utils
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from cvfs.config import Settings
from cvfs.mount.findings import Finding, failed
from cvfs.transport import DIRECT, ENVIRONMENT, check_base_url, check_proxy, environment_proxy
from cvfs.trust.names import TIMESTAMP

CLOCK_S: Final = 60.0
"""More than two clocks that are kept right differ by."""

SET_CLOCK: Final = "set the clock (timedatectl set-ntp true)"
_PORTS: Final = {"http": 80, "https": 443}


class Hop(NamedTuple):
    """A server that the client connects to at `address`, and the mirror `asked` of it: the same address, or where it is
    a proxy, another behind it."""

    address: str
    asked: str


def hops_to(url: str, settings: Settings) -> list[Hop]:
    """Every server that a client with these settings, in this environment, connects to. Raises ConfigError."""
    mirrors = [check_base_url(each) for each in (url, *settings.mirrors)]
    proxies = list(map(check_proxy, chain.from_iterable(settings.proxies or [[ENVIRONMENT]])))
    hops: dict[str, Hop] = {}
    for proxy in proxies:
        for mirror in mirrors:
            by = environment_proxy(mirror) if proxy == ENVIRONMENT else None if proxy == DIRECT else proxy
            hops.setdefault(by or mirror, Hop(by or mirror, mirror))
    return list(hops.values())


def examine(hop: Hop, settings: Settings) -> Iterator[Finding]:
    """Each test only if what the one before looked at was right. Blocks for the deadlines of the settings at most."""
    parts = urlsplit(hop.address)
    if parts.scheme not in _PORTS:
        return
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:  # the latter: a part of the name is too long, or empty
        says = getattr(error, "strerror", None) or str(error)
        yield failed(f"name {host}", says, "check the address, and /etc/resolv.conf")
        return
    yield Finding(f"name {host}", "ok", ", ".join(sorted(map(str, addresses))))
    yield from _examine_port(hop, host, port, settings)


def _examine_port(hop: Hop, host: str, port: int, settings: Settings) -> Iterator[Finding]:
    where = f"{host}:{port}"
    try:
        with socket.create_connection((host, port), settings.connect_deadline_s) as connection:
            yield Finding(f"server {where}", "ok", "takes connections")
            if not hop.address.startswith("https:"):
                yield from _compare_clocks(hop, where, connection)
                return
            context = ssl.create_default_context(cafile=settings.ca)
            with context.wrap_socket(connection, server_hostname=host) as secured:
                yield Finding(f"TLS {where}", "ok", secured.version() or "")
                yield from _compare_clocks(hop, where, secured)
    except ssl.SSLError as error:
        remedy = "name the authority's PEM file with --ca; check the clock"
        yield failed(f"TLS {where}", getattr(error, "verify_message", "") or str(error), remedy)
    except OSError as error:
        yield failed(f"server {where}", error.strerror or str(error), "start it, or look at firewalls and proxies")


def _compare_clocks(hop: Hop, where: str, connection: socket.socket) -> Iterator[Finding]:
    """A clock that runs ahead would only show in that everything seems to have expired."""
    theirs_s = _ask_time(hop, connection)
    if theirs_s is None:
        return
    ahead_s = time.time() - theirs_s
    if abs(ahead_s) <= CLOCK_S:
        yield Finding(f"clock by {where}", "ok", "it is as late there as here")
        return
    says = f"the clock of this host is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the one there"
    yield Finding(f"clock by {where}", "warning", says, f"{SET_CLOCK}, if it is not the other that is wrong")


def _ask_time(hop: Hop, connection: socket.socket) -> float | None:
    """What a server says in the head of any answer, in seconds since 1970; None: nothing, or there is a tunnel."""
    is_proxy = hop.address != hop.asked
    if is_proxy and hop.asked.startswith("https:"):
        return None
    asked = f"{hop.asked}/{TIMESTAMP}"
    asking = http.client.HTTPConnection(urlsplit(hop.asked).netloc)
    asking.sock = connection
    with suppress(OSError, http.client.HTTPException, ValueError):
        # What a cache answers with would have the time at which it came there.
        headers = {"Cache-Control": "no-cache", "Connection": "close"}
        asking.request("HEAD", asked if is_proxy else urlsplit(asked).path, headers=headers)
        said = asking.getresponse().headers
        date = email.utils.parsedate_to_datetime(said.get("Date", ""))
        return date.timestamp() + float(said.get("Age", "0"))
    return None
