"""The adapter and the connections that requests and urllib3 are used with.

urllib3's, with two additions: the sockets are ours (cvfs.transport.connect), and a connection tells the attempt of the
current thread which socket it depends on.
"""

import contextlib
import socket
import ssl
import threading
import time
from typing import Any

import requests.adapters
import requests.utils
import urllib3
import urllib3.connection

from cvfs.errors import ConfigError
from cvfs.transport.attempt import Attempt
from cvfs.transport.connect import Connector
from cvfs.transport.credentials import Credentials

_HOSTS = 64
"""So many servers and proxies have connections that are kept alive; requests keeps those of ten."""

_KEPT = 64
"""Idle connections of each: more than the repositories of a process are likely to use at once."""


class Current(threading.local):
    attempt: Attempt
    connector: Connector


current = Current()


class _Watched(urllib3.connection.HTTPConnection):
    attempt: Attempt | None = None

    def _new_conn(self) -> socket.socket:
        timeout_s = float(self.timeout) if self.timeout is not None else 1.0
        options = self.socket_options
        return current.attempt.open_socket(current.connector, self._dns_host, self.port, timeout_s, options)

    def connect(self) -> None:
        super().connect()
        current.attempt.watch(self.sock, self)
        current.attempt.asked_at = time.monotonic()

    def request(self, *args: Any, **options: Any) -> None:
        attempt = current.attempt
        attempt.reuses = attempt.reached = self.sock is not None
        attempt.asked_at = time.monotonic()
        if self.sock is not None:
            attempt.watch(self.sock, self)
        super().request(*args, **options)


class _WatchedTls(_Watched, urllib3.connection.HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Watched


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _WatchedTls


_POOLS = {"http": _Pool, "https": _TlsPool}


class Adapter(requests.adapters.HTTPAdapter):
    """requests' adapter with our connections and one TLS context (by default each connection loads the CAs anew)."""

    def __init__(self, ca_file: str | None, credentials: Credentials) -> None:
        self._ca_file, self._credentials = ca_file, credentials
        self._context: ssl.SSLContext | None = None
        self._context_lock = threading.Lock()
        super().__init__(_HOSTS, pool_maxsize=_KEPT)

    def close(self) -> None:
        """Close the idle connections now; urllib3 does so when nobody refers to their pool any more, as the traceback
        of an error may."""
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 - it is no dictionary
                with contextlib.suppress(KeyError):
                    manager.pools[key].close()
        super().close()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if isinstance(manager, urllib3.ProxyManager):
            manager.pool_classes_by_scheme = _POOLS
        return manager

    def proxy_headers(self, proxy: str) -> dict[str, str]:
        authorization = self._credentials.find(proxy)
        if authorization is not None:
            return {"Proxy-Authorization": authorization}
        return super().proxy_headers(proxy)

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, pool = super().build_connection_pool_key_attributes(request, True)
        if host["scheme"] == "https":
            pool["ssl_context"] = self._tls()
        return host, pool

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Nothing: the context has the CAs."""

    def _tls(self) -> ssl.SSLContext:
        with self._context_lock:
            if self._context is None:
                self._context = _make_context(self._ca_file)
            return self._context


def _make_context(ca_file: str | None) -> ssl.SSLContext:
    """Trust the CAs in `ca_file`, else the system's (SSL_CERT_FILE is obeyed), else those that requests brings."""
    paths = ssl.get_default_verify_paths()
    if ca_file is None and not (paths.cafile or paths.capath):
        ca_file = requests.utils.DEFAULT_CA_BUNDLE_PATH
    return ssl.create_default_context(cafile=ca_file)


def check_ca_file(ca_file: str) -> None:
    """Raises ConfigError if `ca_file` has no certificates."""
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"cannot read certificates from {ca_file!r}: {error.strerror or error}") from error
