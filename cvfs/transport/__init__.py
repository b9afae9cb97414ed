"""One address at a time: a GET with a limit on its bytes and on its time, the same for http, https and file.

`requests` does the work in worker threads, which trio bounds. No retries and no choice of server here: that is
`cvfs.mirrors`. Nothing that arrives is believed: whoever asked checks it against a hash or a signature.
"""

import copy
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

import msgspec
import trio

from cvfs.errors import CvfsError, TooLargeError, TooSlowError
from cvfs.transport import file
from cvfs.transport.attempt import Attempt
from cvfs.transport.credentials import Auth, Credentials, load_credentials
from cvfs.transport.http import Http, environment_proxy
from cvfs.transport.url import DIRECT, ENVIRONMENT, check_base_url, check_proxy, check_url, origin_of

__all__ = [
    "DIRECT",
    "ENVIRONMENT",
    "Auth",
    "Credentials",
    "Response",
    "Statistics",
    "Transport",
    "check_base_url",
    "check_proxy",
    "check_url",
    "environment_proxy",
    "load_credentials",
    "origin_of",
]

Result = tuple[bytes, str | None, bool]
"""Data, ETag, not modified."""


class Response(msgspec.Struct, frozen=True):
    """What a server gave: `data`, or nothing if `not_modified` (what `etag` of the request names is still current).

    `latency_s` is how long it took from the question, on a connection that stood, to the end of the answer.
    """

    data: bytes
    etag: str | None
    not_modified: bool
    latency_s: float


class Statistics(msgspec.Struct, frozen=True):
    """Since the start: requests begun, bytes of bodies received, failures by the name of their error.

    `active` requests hold one of the `limit` threads just now, also those whose caller has left.
    """

    requests: int
    received_bytes: int
    errors: Mapping[str, int]
    active: int


class Transport:
    """GET, for many tasks at once. Close it to drop the connections that are kept alive.

    `limit` is how many requests may be under way; 16 is a guess, good for 200 requests a second at 80 ms each.
    A connection has to stand within `connect_timeout_s`, and then bytes have to come at least every `read_timeout_s`.
    `ca_file`: certificates to trust instead of the system's. `credentials` go to the origins they belong to.

    Raises ConfigError: `ca_file` cannot be used.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        connect_timeout_s: float = 5,
        read_timeout_s: float = 10,
        limit: int = 16,
        ca_file: str | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._read_timeout_s = read_timeout_s
        self._limiter = trio.CapacityLimiter(limit)
        self._http = Http(
            user_agent=user_agent,
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
            ca_file=ca_file,
            credentials=credentials or Credentials({}),
        )
        self._requests = self._received_bytes = 0
        self._errors: Counter[str] = Counter()

    async def get(
        self,
        url: str,
        *,
        max_bytes: int,
        exact_bytes: int | None = None,
        deadline_s: float,
        etag: str | None = None,
        fresh: bool = False,
        check: Callable[[bytes, str], object] | None = None,
        proxy: str = ENVIRONMENT,
    ) -> Response:
        """The body that `url` has, at most `max_bytes`, or exactly `exact_bytes`, within `deadline_s` from now.

        The deadline covers all: waiting for a thread, name, connection, redirects, body. With `etag`, a body that is
        still the same is not sent again. `fresh` makes caches on the way ask the origin. `check(data, url)` runs in the
        worker thread; what it raises is raised here. `proxy` is the address of one, DIRECT or ENVIRONMENT.

        Raises ConfigError (`url`), IntegrityError (sent encoded), and of TransportError: UnreachableError (ProxyError
        where a proxy is to blame), StatusError, TruncatedError, TooLargeError, TooSlowError. Always a checkpoint;
        cancelled: the caller is released at once, and the connection is closed.
        """
        check_url(url)
        if exact_bytes is not None and exact_bytes > max_bytes:
            raise TooLargeError(url, f"{exact_bytes} bytes wanted where {max_bytes} are allowed")
        started = time.monotonic()
        attempt = Attempt(
            url,
            limit_bytes=max_bytes if exact_bytes is None else exact_bytes,
            exact=exact_bytes is not None,
            deadline=started + deadline_s,
            read_timeout_s=self._read_timeout_s,
        )
        self._requests += 1
        try:
            work = partial(self._work, attempt, etag, fresh, check, proxy)
            data, found, not_modified = await self._run(attempt, work, deadline_s)
        except CvfsError as error:
            self._errors[type(error).__name__] += 1
            raise
        finally:
            self._received_bytes += attempt.received_bytes
        return Response(data, found, not_modified, time.monotonic() - attempt.asked_at)

    def sibling(self) -> "Transport":
        """Another one over the same connections, with threads and counts of its own: one does not wait for the other.

        Only the first one is closed.
        """
        other = copy.copy(self)
        other._limiter = trio.CapacityLimiter(self._limiter.total_tokens)
        other._requests = other._received_bytes = 0
        other._errors = Counter()
        return other

    def statistics(self) -> Statistics:
        """Counts at this moment."""
        return Statistics(self._requests, self._received_bytes, dict(self._errors), self._limiter.borrowed_tokens)

    def close(self) -> None:
        """Close the idle connections; requests under way go on, and close theirs."""
        self._http.close()

    def _work(
        self,
        attempt: Attempt,
        etag: str | None,
        fresh: bool,
        check: Callable[[bytes, str], object] | None,
        proxy: str,
    ) -> Result:
        attempt.begun = True
        if attempt.url.startswith("file:"):
            result = file.get(attempt, etag)
        else:
            result = self._http.get(attempt, etag, fresh, proxy)
        if check is not None and not result[2]:
            check(result[0], attempt.url)
        return result

    async def _run(self, attempt: Attempt, work: Callable[[], Result], deadline_s: float) -> Result:
        with trio.move_on_after(max(0.0, deadline_s)):
            try:
                return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
            except trio.Cancelled:
                attempt.abort()
                raise
        if not attempt.begun:
            raise TooSlowError(attempt.url, f"not asked for {deadline_s:.3g} s: all connections are busy", asked=False)
        raise attempt.too_slow(f"not complete within {deadline_s:.3g} s")
