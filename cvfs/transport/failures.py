"""What requests, urllib3, http.client, ssl and the sockets raise, told in our own errors. Pure."""

import http.client
import re
import ssl

import requests
import urllib3.exceptions

from cvfs.errors import ProxyError, StatusError, TransportError, TruncatedError, UnreachableError
from cvfs.transport.attempt import Attempt

FOREIGN_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,  # ssl.SSLError and socket.gaierror too
    ValueError,  # http.client's for some malformed lengths; UnicodeError: a host name that IDNA refuses
)
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3}) ?(.*)")


def translate(error: BaseException, attempt: Attempt, proxy: str | None) -> TransportError:
    """Our error for `error`, with which `attempt` by way of `proxy` has ended."""
    cause, timed_out = _find_cause(error), is_timeout(error)
    if proxy and not attempt.reached:
        return ProxyError(attempt.url, proxy, "no connection within the time allowed" if timed_out else describe(cause))
    if attempt.is_late() or (timed_out and attempt.connected):
        return attempt.too_slow("no byte within the time allowed")
    if timed_out:
        return UnreachableError(attempt.url, "no connection within the time allowed")
    if attempt.answered:
        return TruncatedError(attempt.url, f"broken off after {attempt.received_bytes} bytes ({describe(cause)})")
    if proxy and (refused := _TUNNEL.match(str(cause))):
        return _tunnel_error(attempt.url, proxy, int(refused[1]), refused[2][:80])
    return UnreachableError(attempt.url, describe(cause))


def _tunnel_error(url: str, proxy: str, status: int, reason: str) -> TransportError:
    if status == 407:
        return ProxyError(url, proxy, f"HTTP 407 {reason}")
    return StatusError(url, status, f"{reason} from the proxy {proxy}")


def is_timeout(error: BaseException) -> bool:
    """Whether somebody waited in vain, our side or the kernel."""
    return isinstance(_find_cause(error), TimeoutError | urllib3.exceptions.TimeoutError)


def _find_cause(error: BaseException) -> BaseException:
    """The innermost exception: requests and urllib3 wrap them as arguments, reasons and causes of one another."""
    for inner in (*error.args, getattr(error, "reason", None), error.__cause__):
        if isinstance(inner, BaseException):
            return _find_cause(inner)
    return error


def describe(cause: BaseException) -> str:
    """One plain line."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"TLS certificate not accepted: {cause.verify_message}"
    text = (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__
    return " ".join(text.split())[:200].lower()
