"""The servers on the way to a repository, for `cvfs doctor`: name, port, certificate and clock of each."""

import base64
import email.utils
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from cvfs.config import Settings
from cvfs.errors import ConfigError
from cvfs.mount.findings import Finding, failed
from cvfs.transport import DIRECT, ENVIRONMENT, check_base_url, check_proxy, environment_proxy, load_credentials
from cvfs.trust.names import TIMESTAMP

CLOCK_S: Final = 60.0
"""More than two clocks that are kept right differ by."""

SET_CLOCK: Final = "set the clock (timedatectl set-ntp true)"
_UNKNOWN_TO_PROXY: Final = 407
_PORTS: Final = {"http": 80, "https": 443}


class Hop(NamedTuple):
    """A server that the client connects to at `address`, and the mirror `asked` of it: the same address, or where it is
    a proxy, another behind it."""

    address: str
    asked: str

    @property
    def is_proxy(self) -> bool:
        return self.address != self.asked

    @property
    def is_tunnel(self) -> bool:
        """Whether the proxy only passes on what it cannot read."""
        return self.is_proxy and self.asked.startswith("https:")


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
    what = f"{'proxy' if hop.is_proxy else 'server'} {where}"
    try:
        with socket.create_connection((host, port), settings.connect_deadline_s) as connection:
            yield Finding(what, "ok", "takes connections")
            if not hop.address.startswith("https:"):
                yield from _examine_answer(hop, where, connection, settings)
                return
            context = ssl.create_default_context(cafile=settings.ca)
            with context.wrap_socket(connection, server_hostname=host) as secured:
                yield Finding(f"TLS {where}", "ok", secured.version() or "")
                yield from _examine_answer(hop, where, secured, settings)
    except ssl.SSLError as error:
        remedy = "name the authority's PEM file with --ca; check the clock"
        yield failed(f"TLS {where}", getattr(error, "verify_message", "") or str(error), remedy)
    except OSError as error:
        yield failed(what, error.strerror or str(error), "start it, or look at firewalls and proxies")


def _examine_answer(hop: Hop, where: str, connection: socket.socket, settings: Settings) -> Iterator[Finding]:
    """What the head of any answer tells: whether a proxy lets this client through, and what time it is there."""
    response = _ask(hop, connection, settings)
    if response is None:
        return
    if response.status == _UNKNOWN_TO_PROXY and hop.is_proxy:
        says = f"refuses this client: HTTP {response.status} {response.reason}".rstrip()
        yield failed(f"proxy {where}", says, "name a file with its user and password with --credentials")
    elif not hop.is_tunnel:
        yield from _compare_clocks(where, response.headers)


def _compare_clocks(where: str, said: http.client.HTTPMessage) -> Iterator[Finding]:
    """A clock that runs ahead would only show in that everything seems to have expired."""
    try:
        date = email.utils.parsedate_to_datetime(said.get("Date", ""))
        theirs_s = date.timestamp() + float(said.get("Age", "0"))
    except ValueError:
        return
    ahead_s = time.time() - theirs_s
    if abs(ahead_s) <= CLOCK_S:
        yield Finding(f"clock by {where}", "ok", "it is as late there as here")
        return
    says = f"the clock of this host is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the one there"
    yield Finding(f"clock by {where}", "warning", says, f"{SET_CLOCK}, if it is not the other that is wrong")


def _ask(hop: Hop, connection: socket.socket, settings: Settings) -> http.client.HTTPResponse | None:
    """The head of the answer to a small request, or to that for a tunnel; None: there is none."""
    parts = urlsplit(hop.asked)
    asked = f"{hop.asked}/{TIMESTAMP}"
    asking = http.client.HTTPConnection(parts.netloc)
    asking.sock = connection
    # What a cache answers with would have the time at which it came there.
    headers = {"Cache-Control": "no-cache", "Connection": "close", **_authorization(hop, settings)}
    with suppress(OSError, http.client.HTTPException, ValueError):
        if hop.is_tunnel:
            asking.request("CONNECT", f"{parts.hostname}:{parts.port or _PORTS['https']}", headers=headers)
        else:
            asking.request("HEAD", asked if hop.is_proxy else urlsplit(asked).path, headers=headers)
        return asking.getresponse()
    return None


def _authorization(hop: Hop, settings: Settings) -> dict[str, str]:
    """What a client with these settings sends to a proxy."""
    if not hop.is_proxy:
        return {}
    parts = urlsplit(hop.address)
    if parts.username is not None:
        both = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return {"Proxy-Authorization": f"Basic {base64.b64encode(both.encode()).decode()}"}
    found = None
    if settings.credentials is not None:
        with suppress(ConfigError):  # the client says what is wrong with the file
            found = load_credentials(settings.credentials).find(hop.address)
    return {} if found is None else {"Proxy-Authorization": found}
