"""What could keep a repository from being mounted, tested hop by hop, each with what to do if it is in the way."""

import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import trio

from cvfs.cache.directory import CacheDirectory
from cvfs.cache.space import Limits
from cvfs.config import Configuration, Settings
from cvfs.errors import ConfigError, CvfsError, MountError
from cvfs.fuse import kernel
from cvfs.fuse.engines import OLDEST_RELEASE, kernel_release
from cvfs.fuse.helper import HELPER
from cvfs.mount.client import Client, open_repository
from cvfs.mount.findings import Finding, failed
from cvfs.mount.hops import CLOCK_S, SET_CLOCK, examine, hops_to
from cvfs.mount.overview import FOREIGN, list_mounts, why
from cvfs.mount.request import may_allow_other
from cvfs.mount.runtime import Runtime
from cvfs.mount.sites import problems_in

MEND_CONFIGURATION: Final = "mend what it names; cvfs config show says what holds"

_RESEND: tuple[int, int] = (6, 9)
_LEAST_FREE_BYTES = 1 << 30
_SOON_S = 24 * 3600.0


def examine_host(settings: Settings) -> Iterator[Finding]:
    """All that is the same for every repository. Blocks for some seconds where a mount hangs."""
    yield _found("device", _try_device)
    yield _found("mounting", _try_mounting)
    yield _look_at_kernel()
    yield _look_at_fuse_conf()
    yield _found("runtime directory", partial(_try_runtime, settings))
    yield _found("cache", partial(_try_cache, settings.cache))
    yield _look_at_space(settings)
    yield _look_at_state(settings.state)
    yield from _look_at_mounts(Runtime(settings.runtime))


def examine_configuration(configuration: Configuration) -> Iterator[Finding]:
    """The files of all repositories, whether anybody uses them or not."""
    problems = problems_in(configuration)
    for problem in problems:
        yield failed("configuration", problem, MEND_CONFIGURATION)
    if not problems:
        count = len(configuration.names())
        says = f"{count} {'repository is' if count == 1 else 'repositories are'} configured"
        yield Finding("configuration", "ok", says)


async def examine_repository(url: str, settings: Settings) -> AsyncIterator[Finding]:
    """The way to a repository, and whether it is to be trusted. Takes the deadlines of the settings at most.

    What is trusted from then on is the same as before, whatever the settings say and the server has.
    """
    try:
        hops = hops_to(url, settings)
    except ConfigError as error:
        yield failed("address", str(error), "mend it where it was given: on the command line, or in the configuration")
        return
    for hop in hops:
        for finding in await trio.to_thread.run_sync(list, examine(hop, settings)):
            yield finding
    try:
        async with open_repository(url, settings, settings.which, remembers=False) as client:
            findings = list(_look_at_repository(client))
    except CvfsError as error:
        findings = [failed("repository", str(error), "see the failures above; else ask who publishes it")]
    for finding in findings:
        yield finding


def _found(test: str, work: Callable[[], str]) -> Finding:
    """What `work` says, or its complaint, which says what to do after the last "; " or ": "."""
    try:
        return Finding(test, "ok", work())
    except CvfsError as error:
        text = str(error)
        says, separator, remedy = text.rpartition("; " if "; " in text else ": ")
        return failed(test, says if separator else text, remedy)


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


def _look_at_space(settings: Settings) -> Finding:
    path, limits = settings.cache, Limits(settings.cache_limit, settings.keep_free)
    try:
        limits.check()
        total, _, free = shutil.disk_usage(path)
    except ConfigError as error:
        return failed("space", str(error), "raise cache_limit")
    except OSError as error:
        return failed("space", f"{path}: {error.strerror}", "name another with --cache")
    says, kept = f"{free / (1 << 30):.1f} GiB are free for {path}", limits.kept_free(total)
    if free < kept:
        says += f", but keep_free leaves {kept / (1 << 30):.1f} GiB to others: nothing more is cached"
        return Finding("space", "warning", says, "free some, lower keep_free, or name another disk with --cache")
    if free < _LEAST_FREE_BYTES:
        return Finding("space", "warning", says, "free some, or name another disk with --cache")
    return Finding("space", "ok", says)


def _look_at_state(path: Path) -> Finding:
    there = next(each for each in (path, *path.parents) if each.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding("state", "ok", f"{path} can be written")
    return failed("state", f"{path} cannot be written: what is trusted is forgotten", "name another with --state-dir")


def _look_at_mounts(runtime: Runtime) -> Iterator[Finding]:
    for mount in list_mounts(runtime):
        what, state = f"mount {mount['mountpoint']}", mount["state"]
        if state in ("ok", FOREIGN):
            yield Finding(what, "ok", state)
        else:
            remedy = f"cvfs umount {mount['mountpoint']}" if state == "dead" else "cvfs status says more of it"
            yield failed(what, ": ".join(filter(None, (state, why(mount)))), remedy)


def _look_at_repository(client: Client) -> Iterator[Finding]:
    heads, manifest = client.heads, client.repository.manifest
    if heads.problem:
        yield failed("news", heads.problem, "what is known is served meanwhile")
    yield Finding("repository", "ok", f"revision {manifest.revision} of {manifest.repository}")
    network = client.mirrors.status()
    others = [(f"mirror {each['url']}", each) for each in network["mirrors"]]
    others += [(f"way by {each['address']}", each) for each in network["proxies"]]
    for what, each in others:
        if each["state"] not in ("ok", "unknown"):
            yield Finding(
                what, "warning", f"{each['state']}: {each['problem'] or 'it has not said why'}", "ask its owner"
            )
    now = time.time()
    if manifest.published_s > now + CLOCK_S:
        says = "the clock of this host is behind that of the publisher"
        yield failed("clock", says, SET_CLOCK)
    if heads.head is not None:
        yield _look_at_expiry(heads.head.trusted.expires_s - now)


def _look_at_expiry(left_s: float) -> Finding:
    says = f"signed for {left_s / 3600:.1f} more hours"
    remedy = "have the publisher sign again (cvfs-publisher resign); check the clock"
    if left_s <= 0:
        return failed("expiry", f"what is signed expired {-left_s / 3600:.1f} hours ago", remedy)
    return Finding("expiry", "warning", says, remedy) if left_s < _SOON_S else Finding("expiry", "ok", says)
