"""What could keep a repository from being mounted, tested hop by hop, each with what to do if it is in the way."""

import os
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import trio

from cvfs.cache.directory import CacheDirectory
from cvfs.config import Settings
from cvfs.errors import ConfigError, CvfsError, MountError
from cvfs.fuse import kernel
from cvfs.fuse.helper import HELPER
from cvfs.fuse.release import OLDEST_RELEASE, kernel_release
from cvfs.mount.client import Client, open_repository
from cvfs.mount.overview import FOREIGN, list_mounts
from cvfs.mount.request import may_allow_other
from cvfs.mount.runtime import Runtime

_RESEND: tuple[int, int] = (6, 9)
_LEAST_FREE_BYTES = 1 << 30
_SOON_S = 24 * 3600.0
_CLOCK_S = 60.0
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one test. `says` is what was found, `remedy` what to do about it; "warning" keeps nothing back."""

    test: str
    state: Literal["ok", "warning", "failed"]
    says: str
    remedy: str = ""


def examine_host(settings: Settings) -> Iterator[Finding]:
    """All that is the same for every repository. Blocks for some seconds where a mount hangs."""
    yield _found("device", _try_device)
    yield _found("mounting", _try_mounting)
    yield _look_at_kernel()
    yield _look_at_fuse_conf()
    yield _found("runtime directory", partial(_try_runtime, settings))
    yield _found("cache", partial(_try_cache, settings.cache))
    yield _look_at_space(settings.cache)
    yield _look_at_state(settings.state)
    yield from _look_at_mounts(Runtime(settings.runtime))


async def examine_repository(url: str, settings: Settings) -> AsyncIterator[Finding]:
    """The way to a repository, and whether it is to be trusted. Takes the deadlines of the settings at most."""
    proxies = list(dict.fromkeys(chain.from_iterable(settings.proxies)))
    direct = not proxies or "DIRECT" in proxies
    for address in [*(each for each in proxies if each != "DIRECT"), *([url, *settings.mirrors] if direct else ())]:
        for finding in await trio.to_thread.run_sync(list, _look_at_server(address, settings)):
            yield finding
    try:
        async with open_repository(url, settings, settings.which) as client:
            findings = list(_look_at_repository(client))
    except CvfsError as error:
        findings = [_failed("repository", str(error), "see the failures above; else ask who publishes it")]
    for finding in findings:
        yield finding


def _found(test: str, work: Callable[[], str]) -> Finding:
    """What `work` says, or its complaint, which says what to do after the last "; " or ": "."""
    try:
        return Finding(test, "ok", work())
    except CvfsError as error:
        text = str(error)
        says, separator, remedy = text.rpartition("; " if "; " in text else ": ")
        return _failed(test, says if separator else text, remedy)


def _failed(test: str, says: str, remedy: str) -> Finding:
    return Finding(test, "failed", says, remedy)


def _try_device() -> str:
    os.close(kernel.open_device())
    return f"{kernel.DEVICE} can be opened"


def _try_mounting() -> str:
    if kernel.can_mount_directly():
        return "this user may mount"
    if shutil.which(HELPER):
        return f"this user may mount by {HELPER}"
    raise MountError(f"this user may not mount, and there is no {HELPER}; install fuse3, or use `cvfs run`")


def _look_at_kernel() -> Finding:
    release = kernel_release()
    says = f"Linux {os.uname().release}"
    if release < OLDEST_RELEASE:
        return Finding("kernel", "warning", f"{says} is too old for the channel engine", "use Linux 5.4 or newer")
    if release < _RESEND:
        return Finding("kernel", "warning", f"{says}: after the death of a worker it mounts anew", "use Linux 6.9")
    return Finding("kernel", "ok", f"{says}: the death of a worker goes unnoticed")


def _look_at_fuse_conf() -> Finding:
    if may_allow_other():
        return Finding("other users", "ok", "may be let into mounts")
    remedy = "write user_allow_other into /etc/fuse.conf"
    return Finding("other users", "warning", "cannot be let into mounts of this user", remedy)


def _try_runtime(settings: Settings) -> str:
    Runtime(settings.runtime).prepare()
    return f"{settings.runtime} is this user's alone"


def _try_cache(path: Path) -> str:
    if not CacheDirectory(path).writable:
        raise ConfigError(f"the cache {path} cannot be written; make it writable, or name another with --cache")
    return f"{path} can be written"


def _look_at_space(path: Path) -> Finding:
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        return _failed("space", f"{path}: {error.strerror}", "name another with --cache")
    says = f"{free / (1 << 30):.1f} GiB are free for {path}"
    if free < _LEAST_FREE_BYTES:
        return Finding("space", "warning", says, "free some, or name another disk with --cache")
    return Finding("space", "ok", says)


def _look_at_state(path: Path) -> Finding:
    there = next(each for each in (path, *path.parents) if each.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding("state", "ok", f"{path} can be written")
    return _failed("state", f"{path} cannot be written: what is trusted is forgotten", "name another with --state-dir")


def _look_at_mounts(runtime: Runtime) -> Iterator[Finding]:
    for mount in list_mounts(runtime):
        what, state = f"mount {mount['mountpoint']}", mount["state"]
        if state in ("ok", FOREIGN):
            yield Finding(what, "ok", state)
        else:
            remedy = f"cvfs umount {mount['mountpoint']}" if state == "dead" else "cvfs status says more of it"
            yield _failed(what, f"{state}: {mount.get('problem') or mount.get('refresh_problem', '')}", remedy)


def _look_at_server(address: str, settings: Settings) -> Iterator[Finding]:
    """Its name, its port, and its certificate: each only if the one before was right."""
    parts = urlsplit(address)
    if parts.scheme not in _PORTS:
        return
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        remedy = "check the address, and /etc/resolv.conf"
        yield _failed(f"name {host}", error.strerror or str(error), remedy)
        return
    yield Finding(f"name {host}", "ok", ", ".join(sorted(map(str, addresses))))
    yield from _look_at_port(parts.scheme, host, port, settings)


def _look_at_port(scheme: str, host: str, port: int, settings: Settings) -> Iterator[Finding]:
    where = f"{host}:{port}"
    try:
        with socket.create_connection((host, port), settings.connect_deadline_s) as connection:
            yield Finding(f"server {where}", "ok", "takes connections")
            if scheme == "https":
                context = ssl.create_default_context(cafile=settings.ca)
                with context.wrap_socket(connection, server_hostname=host) as secured:
                    yield Finding(f"TLS {where}", "ok", secured.version() or "")
    except ssl.SSLError as error:
        remedy = "name the authority's PEM file with --ca; check the clock"
        yield _failed(f"TLS {where}", getattr(error, "verify_message", "") or str(error), remedy)
    except OSError as error:
        remedy = "start it, or look at firewalls and proxies"
        yield _failed(f"server {where}", error.strerror or str(error), remedy)


def _look_at_repository(client: Client) -> Iterator[Finding]:
    heads, manifest = client.heads, client.repository.manifest
    if heads.problem:
        yield _failed("news", heads.problem, "what is known is served meanwhile")
    yield Finding("repository", "ok", f"revision {manifest.revision} of {manifest.repository}")
    for mirror in client.mirrors.status()["mirrors"]:
        if mirror["state"] not in ("ok", "unknown"):
            yield Finding(
                f"mirror {mirror['url']}", "warning", f"{mirror['state']}: {mirror['problem']}", "ask its owner"
            )
    now = time.time()
    if manifest.published_s > now + _CLOCK_S:
        says = "the clock of this host is behind that of the publisher"
        yield _failed("clock", says, "set the clock (timedatectl set-ntp true)")
    if heads.head is not None:
        yield _look_at_expiry(heads.head.trusted.expires_s - now)


def _look_at_expiry(left_s: float) -> Finding:
    says = f"signed for {left_s / 3600:.1f} more hours"
    remedy = "have the publisher sign again (cvfs-publisher resign); check the clock"
    if left_s <= 0:
        return _failed("expiry", f"what is signed expired {-left_s / 3600:.1f} hours ago", remedy)
    return Finding("expiry", "warning", says, remedy) if left_s < _SOON_S else Finding("expiry", "ok", says)
