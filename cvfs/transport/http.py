"""http:// and https:// through requests: one GET, redirects followed, every foreign exception translated.

A request goes straight to requests' adapter, not through Session.send: that reads the whole body of a redirect, however
long, keeps cookies, and looks for proxies in the environment and for passwords in ~/.netrc each time. The connection
classes are urllib3's with one addition: they tell the attempt of the current thread which socket it depends on.
"""

import base64
import email.utils
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.adapters
import requests.utils
import urllib3
import urllib3.connection
import urllib3.exceptions
from requests.structures import CaseInsensitiveDict

from cvfs.errors import ConfigError, IntegrityError, StatusError, TransportError, TruncatedError, UnreachableError
from cvfs.transport.attempt import Attempt
from cvfs.transport.url import find_redirect, same_origin

Auth = tuple[str, str] | str
"""(user, password) for basic authentication, or a bearer token."""

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_FOREIGN_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,  # ssl.SSLError and socket.gaierror too
    ValueError,  # http.client's for some malformed lengths; UnicodeError: a host name that IDNA refuses
)
_ETAG = re.compile(r'(W/)?"[\x21\x23-\x7e]{0,256}"')


class _Current(threading.local):
    attempt: Attempt


_current = _Current()


class _Watched(urllib3.connection.HTTPConnection):
    attempt: Attempt | None = None

    def _new_conn(self) -> socket.socket:
        timeout_s = float(self.timeout) if self.timeout is not None else 1.0
        return _current.attempt.open_socket(self._dns_host, self.port, timeout_s, self.socket_options)

    def connect(self) -> None:
        super().connect()
        _current.attempt.watch(self.sock, self)

    def request(self, *args: Any, **options: Any) -> None:
        _current.attempt.reuses = self.sock is not None
        if self.sock is not None:
            _current.attempt.watch(self.sock, self)
        super().request(*args, **options)


class _WatchedTls(_Watched, urllib3.connection.HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Watched


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _WatchedTls


_POOLS = {"http": _Pool, "https": _TlsPool}


class _Adapter(requests.adapters.HTTPAdapter):
    """requests' adapter with our connections and one TLS context (by default each connection loads the CAs anew)."""

    def __init__(self, limit: int, ca_file: str | None) -> None:
        self._ca_file = ca_file
        self._context: ssl.SSLContext | None = None
        self._context_lock = threading.Lock()
        super().__init__(pool_maxsize=limit)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if isinstance(manager, urllib3.ProxyManager):
            manager.pool_classes_by_scheme = _POOLS
        return manager

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


class Http:
    """GET over http and https for many worker threads at once; connections are kept alive, at most `limit` a host."""

    def __init__(
        self,
        *,
        user_agent: str,
        connect_timeout_s: float,
        read_timeout_s: float,
        limit: int,
        ca_file: str | None,
        proxies: Mapping[str, str] | None,
        auth: Auth | None,
    ) -> None:
        if ca_file is not None:
            _check_ca_file(ca_file)
        self._headers = {"User-Agent": user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        self._authorization = _encode_auth(auth) if auth is not None else None
        self._connect_timeout_s, self._read_timeout_s = connect_timeout_s, read_timeout_s
        self._adapter = _Adapter(limit, ca_file)
        self._proxies = dict(proxies) if proxies is not None else None
        self._proxies_of_origin: dict[tuple[str, str], dict[str, str]] = {}

    def close(self) -> None:
        """Close the idle connections."""
        self._adapter.close()

    def get(self, attempt: Attempt, etag: str | None, fresh: bool) -> tuple[bytes, str | None, bool]:
        """Data, ETag, and whether what `etag` names is still current. Blocks; for a worker thread.

        `fresh`: caches on the way have to ask the origin. Raises TransportError, IntegrityError; trio.Cancelled.
        """
        _current.attempt = attempt
        try:
            return self._follow(attempt, etag, fresh)
        except _FOREIGN_ERRORS as error:
            raise _translate(error, attempt) from error

    def _follow(self, attempt: Attempt, etag: str | None, fresh: bool) -> tuple[bytes, str | None, bool]:
        url, status = attempt.url, 0
        for _ in range(MAX_REDIRECTS + 1):
            headers = self._make_headers(attempt.url, url, etag, fresh)
            # Closing drops the connection unless the body was read to its end; only then does the pool take it back.
            with self._send(url, attempt, headers) as response:
                status = response.status_code
                if status not in _REDIRECTS:
                    return _take(response, attempt, etag)
                url = _follow_redirect(url, response)
        raise StatusError(attempt.url, status, f"more than {MAX_REDIRECTS} redirects")

    def _send(self, url: str, attempt: Attempt, headers: dict[str, str]) -> requests.Response:
        try:
            return self._send_once(url, attempt, headers)
        except requests.ConnectionError:
            # A connection that was kept alive may be closed by the other side just as it is taken up again. That says
            # nothing of the server, so it is no retry of the kind that only `cvfs.mirrors` makes.
            if not attempt.reuses:
                raise
        return self._send_once(url, attempt, headers)

    def _send_once(self, url: str, attempt: Attempt, headers: dict[str, str]) -> requests.Response:
        left_s = attempt.time_left_s()
        timeouts_s = (min(self._connect_timeout_s, left_s), min(self._read_timeout_s, left_s))
        request = _make_request(url, headers)
        return self._adapter.send(request, stream=True, timeout=timeouts_s, proxies=self._find_proxies(url))

    def _make_headers(self, first_url: str, url: str, etag: str | None, fresh: bool) -> dict[str, str]:
        headers = dict(self._headers)
        if etag is not None:
            headers["If-None-Match"] = etag
        if fresh:
            headers["Cache-Control"] = headers["Pragma"] = "no-cache"
        if self._authorization is not None and same_origin(first_url, url):
            headers["Authorization"] = self._authorization
        return headers

    def _find_proxies(self, url: str) -> dict[str, str]:
        if self._proxies is not None:
            return self._proxies
        parts = urlsplit(url)
        origin = parts.scheme, parts.netloc
        if origin not in self._proxies_of_origin:
            self._proxies_of_origin[origin] = _find_environment_proxies(url, parts.hostname or "")
        return self._proxies_of_origin[origin]


def _make_request(url: str, headers: dict[str, str]) -> requests.PreparedRequest:
    request = requests.PreparedRequest()
    if url.isascii():
        # What prepare() does for such a request, without the 180 us that it takes.
        request.method, request.url, request.headers = "GET", url, CaseInsensitiveDict(headers)
    else:
        request.prepare(method="GET", url=url, headers=headers)
    return request


def _find_environment_proxies(url: str, host: str) -> dict[str, str]:
    """What http_proxy, https_proxy and no_proxy say; never a proxy for this machine itself: it could not reach that."""
    if host in ("localhost", "::1") or host.startswith("127."):
        return {}
    return requests.utils.get_environ_proxies(url)


def _encode_auth(auth: Auth) -> str:
    if isinstance(auth, str):
        return f"Bearer {auth}"
    return "Basic " + base64.b64encode(":".join(auth).encode()).decode()


def _check_ca_file(ca_file: str) -> None:
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"cannot read certificates from {ca_file!r}: {error.strerror or error}") from error


def _follow_redirect(url: str, response: requests.Response) -> str:
    # http.client decodes headers as Latin-1; what servers write there is UTF-8.
    location = response.headers.get("Location", "").encode("latin-1", "replace").decode(errors="replace")
    target = find_redirect(url, location)
    if target is None:
        raise StatusError(url, response.status_code, f"redirect to {location[:200]!r}, which is not followed")
    return target


def _take(response: requests.Response, attempt: Attempt, etag: str | None) -> tuple[bytes, str | None, bool]:
    if response.status_code == 304 and etag is not None:
        response.raw.read1(1)  # nothing: but it gives the connection back to the pool
        return b"", etag, True
    if response.status_code != 200:
        raise _make_status_error(response, attempt.url)
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise IntegrityError("the stored bytes", f"an encoding of them ({encoding[:40]})", attempt.url)
    attempt.answered = True
    raw: urllib3.HTTPResponse = response.raw
    # read1, not read: read(n) goes on over any number of receives until it has n bytes, which a dripping server
    # can make last for hours.
    data = attempt.read_body(lambda size: raw.read1(size, decode_content=False), raw.length_remaining)
    found = response.headers.get("ETag", "")
    return data, found if _ETAG.fullmatch(found) else None, False


def _make_status_error(response: requests.Response, url: str) -> StatusError:
    reason = (response.reason or "")[:80]
    after = _parse_retry_after(response.headers.get("Retry-After", ""), time.time())
    return StatusError(url, response.status_code, reason, retry_after_s=after)


def _parse_retry_after(value: str, now_s: float) -> float | None:
    """Seconds to wait from `now_s` (since 1970) on; None if the server does not say, or not in HTTP's way."""
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now_s)
    except (ValueError, TypeError, OverflowError):
        return None


def _translate(error: BaseException, attempt: Attempt) -> TransportError:
    cause = _find_cause(error)
    timed_out = isinstance(cause, TimeoutError | urllib3.exceptions.TimeoutError)
    if attempt.is_late() or (timed_out and attempt.connected):
        return attempt.too_slow("no byte within the time allowed")
    if timed_out:
        return UnreachableError(attempt.url, "no connection within the time allowed")
    if attempt.answered:
        return TruncatedError(attempt.url, f"broken off after {attempt.received_bytes} bytes ({_describe(cause)})")
    return UnreachableError(attempt.url, _describe(cause))


def _find_cause(error: BaseException) -> BaseException:
    """The innermost exception: requests and urllib3 wrap them as arguments, reasons and causes of one another."""
    for inner in (*error.args, getattr(error, "reason", None), error.__cause__):
        if isinstance(inner, BaseException):
            return _find_cause(inner)
    return error


def _describe(cause: BaseException) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"TLS certificate not accepted: {cause.verify_message}"
    text = (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__
    return " ".join(text.split())[:200].lower()
