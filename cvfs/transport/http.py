"""http:// and https:// through requests: one GET, redirects followed, every foreign exception translated.

A request goes straight to requests' adapter, not through Session.send: that reads the whole body of a redirect, however
long, keeps cookies, and looks for proxies in the environment and for passwords in ~/.netrc each time.
"""

import email.utils
import re
import time
from urllib.parse import urlsplit

import requests
import requests.utils
import urllib3
from requests.structures import CaseInsensitiveDict

from cvfs.errors import IntegrityError, ProxyError, StatusError
from cvfs.transport.attempt import Attempt
from cvfs.transport.connect import Connector
from cvfs.transport.connections import Adapter, check_ca_file, current
from cvfs.transport.credentials import Credentials
from cvfs.transport.failures import FOREIGN_ERRORS, is_timeout, translate
from cvfs.transport.recent import Recent
from cvfs.transport.url import DIRECT, ENVIRONMENT, find_redirect

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_ETAG = re.compile(r'(W/)?"[\x21\x23-\x7e]{0,256}"')


class Http:
    """GET over http and https for many worker threads at once; connections are kept alive."""

    def __init__(
        self,
        *,
        user_agent: str,
        connect_timeout_s: float,
        read_timeout_s: float,
        ca_file: str | None,
        credentials: Credentials,
    ) -> None:
        if ca_file is not None:
            check_ca_file(ca_file)
        self._headers = {"User-Agent": user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        self._credentials = credentials
        self._connect_timeout_s, self._read_timeout_s = connect_timeout_s, read_timeout_s
        self._adapter = Adapter(ca_file, credentials)
        self._connector = Connector(connect_timeout_s)
        self._environment: Recent[str, dict[str, str]] = Recent()

    def close(self) -> None:
        """Close the idle connections."""
        self._adapter.close()

    def get(self, attempt: Attempt, etag: str | None, fresh: bool, proxy: str) -> tuple[bytes, str | None, bool]:
        """Data, ETag, and whether what `etag` names is still current. Blocks; for a worker thread.

        `fresh`: caches on the way have to ask the origin. Raises TransportError, IntegrityError; trio.Cancelled.
        """
        current.attempt, current.connector = attempt, self._connector
        try:
            return self._follow(attempt, etag, fresh, proxy)
        except FOREIGN_ERRORS as error:
            raise translate(error, attempt, self._name_proxy(attempt.url, proxy)) from error

    def _follow(self, attempt: Attempt, etag: str | None, fresh: bool, proxy: str) -> tuple[bytes, str | None, bool]:
        url, status = attempt.url, 0
        for _ in range(MAX_REDIRECTS + 1):
            headers, proxies = self._make_headers(url, etag, fresh), self._find_proxies(url, proxy)
            # Closing drops the connection unless the body was read to its end; only then does the pool take it back.
            with self._send(url, attempt, headers, proxies) as response:
                status = response.status_code
                if status == 407 and proxies:
                    name = self._name_proxy(url, proxy) or proxy
                    raise ProxyError(attempt.url, name, f"HTTP 407 {(response.reason or '')[:80]}")
                if status not in _REDIRECTS:
                    return _take(response, attempt, etag)
                url = _follow_redirect(url, response)
        raise StatusError(attempt.url, status, f"more than {MAX_REDIRECTS} redirects")

    def _send(self, url: str, attempt: Attempt, headers: dict[str, str], proxies: dict[str, str]) -> requests.Response:
        try:
            return self._send_once(url, attempt, headers, proxies)
        except requests.ConnectionError as error:
            # A connection that was kept alive may be closed by the other side just as it is taken up again. That says
            # nothing of the server, so it is no retry of the kind that only `cvfs.mirrors` makes.
            if not attempt.reuses or is_timeout(error):
                raise
        return self._send_once(url, attempt, headers, proxies)

    def _send_once(
        self, url: str, attempt: Attempt, headers: dict[str, str], proxies: dict[str, str]
    ) -> requests.Response:
        left_s = attempt.time_left_s()
        timeouts_s = (min(self._connect_timeout_s, left_s), min(self._read_timeout_s, left_s))
        request = _make_request(url, headers)
        return self._adapter.send(request, stream=True, timeout=timeouts_s, proxies=proxies)

    def _make_headers(self, url: str, etag: str | None, fresh: bool) -> dict[str, str]:
        headers = dict(self._headers)
        if etag is not None:
            headers["If-None-Match"] = etag
        if fresh:
            headers["Cache-Control"] = headers["Pragma"] = "no-cache"
        authorization = self._credentials.find(url)
        if authorization is not None:
            headers["Authorization"] = authorization
        return headers

    def _find_proxies(self, url: str, proxy: str) -> dict[str, str]:
        """What requests wants to know: a proxy's address by scheme."""
        if proxy == DIRECT:
            return {}
        if proxy != ENVIRONMENT:
            return {"http": proxy, "https": proxy}
        origin = "/".join(url.split("/", 3)[:3])
        found = self._environment.get(origin)
        if found is None:
            found = _find_environment_proxies(url)
            self._environment.put(origin, found)
        return found

    def _name_proxy(self, url: str, proxy: str) -> str | None:
        """The proxy by which `url` is asked for, None if there is none."""
        return requests.utils.select_proxy(url, self._find_proxies(url, proxy))


def _make_request(url: str, headers: dict[str, str]) -> requests.PreparedRequest:
    request = requests.PreparedRequest()
    if url.isascii():
        # What prepare() does for such a request, without the 180 us that it takes.
        request.method, request.url, request.headers = "GET", url, CaseInsensitiveDict(headers)
    else:
        request.prepare(method="GET", url=url, headers=headers)
    return request


def environment_proxy(url: str) -> str | None:
    """The address of the proxy by which ENVIRONMENT asks for `url`, None if there is none."""
    proxy = requests.utils.select_proxy(url, _find_environment_proxies(url))
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _find_environment_proxies(url: str) -> dict[str, str]:
    """What http_proxy, https_proxy and no_proxy say; never a proxy for this machine itself: it could not reach that."""
    host = urlsplit(url).hostname or ""
    if host in ("localhost", "::1") or host.startswith("127."):
        return {}
    return requests.utils.get_environ_proxies(url)


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
