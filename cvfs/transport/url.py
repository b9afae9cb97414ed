"""What may stand in the address of a store, a mirror or a redirect. Pure."""

import os
import re
from urllib.parse import SplitResult, unquote_to_bytes, urljoin, urlsplit

from cvfs.errors import ConfigError

DIRECT = "DIRECT"
"""Among proxies: none at all."""

ENVIRONMENT = "ENVIRONMENT"
"""Among proxies: the one that http_proxy, https_proxy and no_proxy mean for an address, or none."""

SCHEMES = ("http", "https", "file")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")


def check_url(url: str) -> str:
    """`url` itself, if one can ask for it; raises ConfigError with what is wrong with it."""
    problem = _find_problem(url)
    if problem:
        raise ConfigError(f"cannot use the address {url!r}: {problem}")
    return url


def check_base_url(url: str) -> str:
    """The address of a store or a mirror, without trailing slashes: "/data/..." is appended to it."""
    parts = urlsplit(check_url(url))
    if parts.query or parts.fragment:
        raise ConfigError(f"cannot use the address {url!r}: it must not contain '?' or '#'")
    return url.rstrip("/")


def check_proxy(address: str) -> str:
    """The address of a proxy, without a trailing slash, or DIRECT or ENVIRONMENT. Raises ConfigError."""
    if address in (DIRECT, ENVIRONMENT):
        return address
    checked = check_base_url(address)
    if not checked.startswith("http://") or checked.count("/") != 2:
        raise ConfigError(f"cannot use the proxy {address!r}: wanted http://host:port")
    return checked


def find_redirect(url: str, location: str) -> str | None:
    """Where the answer `Location: location` to a request for `url` leads; None if it must not be followed.

    What is encrypted stays so: from https a redirect leads to https.
    """
    try:
        target = urljoin(url, location.strip())
        scheme = urlsplit(target).scheme
        allowed = scheme == "https" or (scheme == "http" and urlsplit(url).scheme == "http")
        return target if allowed and not _find_problem(target) else None
    except ValueError:
        return None


def origin_of(url: str) -> str:
    """Scheme, host and port as "https://host:443": what credentials, connections and health belong to.

    For an address that was checked; of a file, "file://".
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in _DEFAULT_PORTS:
        return "file://"
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{parts.port or _DEFAULT_PORTS[parts.scheme]}"


def file_path(url: str) -> bytes:
    """The path that a file:// address names, percent-encoding removed."""
    return unquote_to_bytes(os.fsencode(urlsplit(url).path))


def _find_problem(url: str) -> str:
    if _FORBIDDEN.search(url):
        return "it contains a blank, a control character or a backslash"
    try:
        return _find_problem_of_parts(urlsplit(url))
    except ValueError as error:
        return str(error).lower()


def _find_problem_of_parts(parts: SplitResult) -> str:
    if parts.scheme not in SCHEMES:
        return "it must begin with http://, https:// or file://"
    if parts.scheme == "file":
        return _find_problem_of_file(parts)
    if not parts.hostname:
        return "it names no host"
    if parts.username is not None or parts.password is not None:
        return "user names and passwords do not belong in an address, where logs and process lists show them"
    if parts.port == 0:  # reading `port` also raises ValueError for what is not a port
        return "port 0 cannot be connected to"
    return _find_problem_of_host(parts.hostname)


def _find_problem_of_file(parts: SplitResult) -> str:
    if parts.netloc not in ("", "localhost"):
        return "a file:// address has three slashes: file:///path"
    if not parts.path.startswith("/"):
        return "a file:// address needs an absolute path: file:///path"
    return "it contains %00" if "%00" in parts.path else ""


def _find_problem_of_host(host: str) -> str:
    try:
        host.encode("idna")
    except UnicodeError:
        return f"{host!r} cannot be the name of a host"
    return ""
