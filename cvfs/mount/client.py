"""A repository, opened: transport, mirrors, cache, fetcher and the tasks behind them, put together and taken apart."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio

import cvfs
from cvfs.cache import Cache
from cvfs.config import Settings
from cvfs.errors import CvfsError, TooSlowError
from cvfs.fetcher import Fetcher
from cvfs.heads import Heads, find_revision, state_key
from cvfs.inodes import Numbering
from cvfs.mirrors import Mirrors
from cvfs.model import Manifest
from cvfs.repository import Repository
from cvfs.transport import Transport, check_base_url


@dataclass(frozen=True, slots=True)
class Client:
    """One repository in use: `repository` answers, the rest is what it stands on."""

    url: str
    repository: Repository
    heads: Heads
    fetcher: Fetcher
    cache: Cache
    transport: Transport


@asynccontextmanager
async def open_repository(
    url: str, settings: Settings, revision: int | None = None, manifest: Manifest | None = None
) -> AsyncIterator[Client]:
    """The repository at `url`, at its newest revision or at `revision`; its root is already in memory.

    `manifest` is given by who has it from an earlier opening, to go on with: then no server is asked.

    The tasks that bring what is read live as long as the context. Raises CvfsError: no such repository, no server and
    nothing known before, a cache that cannot be used, a broken root page.
    """
    url = check_base_url(url)
    with _transport() as transport, _cache(settings) as cache:
        mirrors = Mirrors(transport, [url])
        heads = Heads(mirrors, url, settings.state / state_key(url))
        async with _services() as nursery:
            if manifest is None:
                manifest = await _newest(heads, mirrors, settings, revision)
            numbering = Numbering(manifest.repository)
            fetcher = Fetcher(mirrors, cache, numbering, nursery, deadline_s=settings.deadline_s)
            repository = Repository(manifest, numbering, fetcher)
            await _bring_root(repository, manifest, url, settings)
            yield Client(url, repository, heads, fetcher, cache, transport)


async def _newest(heads: Heads, mirrors: Mirrors, settings: Settings, revision: int | None) -> Manifest:
    """The manifest of the current revision, or of `revision`."""
    head = await heads.current(settings.start_deadline_s, settings.known_deadline_s)
    if revision is None:
        return head.manifest
    return await find_revision(head.manifest, revision, mirrors, settings.start_deadline_s)


async def _bring_root(repository: Repository, manifest: Manifest, url: str, settings: Settings) -> None:
    """A repository whose root cannot be read is refused before anything is mounted."""
    with trio.move_on_after(settings.start_deadline_s):
        await repository.bring(lambda: repository.find_nowait(b""))
        return
    what = f"the root of revision {manifest.revision} did not come within {settings.start_deadline_s:g} s"
    raise TooSlowError(url, what)


@contextmanager
def _transport() -> Iterator[Transport]:
    transport = Transport(user_agent=f"cvfs/{cvfs.__version__}")
    try:
        yield transport
    finally:
        transport.close()


@contextmanager
def _cache(settings: Settings) -> Iterator[Cache]:
    cache = Cache(settings.cache)
    try:
        yield cache
    finally:
        cache.close()


@asynccontextmanager
async def _services() -> AsyncIterator[trio.Nursery]:
    """A nursery for what runs as long as the context; an error of the context leaves it as it was raised."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise single(group) from None


def single(error: BaseException) -> BaseException:
    """The one exception in a group that has to be told: the first if all are ours, else the one that is not.

    A group with several that nobody expected stays what it is.
    """
    leaves = [leaf for leaf in _leaves(error) if not isinstance(leaf, trio.Cancelled)]
    unexpected = [leaf for leaf in leaves if not isinstance(leaf, CvfsError)]
    if len(unexpected) > 1 or not leaves:
        return error
    return (unexpected or leaves)[0]


def _leaves(group: BaseException) -> Iterator[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        for inner in group.exceptions:
            yield from _leaves(inner)
    else:
        yield group
