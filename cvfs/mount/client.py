"""Repositories, opened: transport, mirrors, cache, fetcher and the tasks behind them, put together and taken apart."""

import contextlib
import logging
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager

import msgspec
import trio

import cvfs
from cvfs.cache import Cache
from cvfs.cache.space import Limits
from cvfs.config import Settings
from cvfs.errors import ConfigError, CvfsError, TooSlowError
from cvfs.fetcher import Fetcher, Shared
from cvfs.heads import Head, Heads, state_key
from cvfs.inodes import ROOT_INODE, Numbering
from cvfs.mirrors import Mirrors, Network
from cvfs.model import Manifest
from cvfs.mount.freshness import expired
from cvfs.mount.upkeep import give_back_when_idle, keep_within_limits, look_after
from cvfs.repository import Repository
from cvfs.revisions import Revisions
from cvfs.transport import Transport, check_base_url, load_credentials
from cvfs.trust.anchor import Anchor, find_anchor
from cvfs.which import Which

log = logging.getLogger(__name__)


class Client(msgspec.Struct, frozen=True):
    """One repository in use: `repository` answers, the rest is what it stands on.

    Each has threads of its own: those that wait for a dead server are missed by no other repository.
    """

    url: str
    repository: Repository
    heads: Heads
    fetcher: Fetcher
    cache: Cache
    transport: Transport
    mirrors: Mirrors
    unasked: trio.CancelScope
    """Of what it does without being asked."""

    def close(self) -> None:
        """What it does unasked ends. It may be read as before, by whoever still does: what is being brought, or put
        into the cache, is so to its end."""
        self.unasked.cancel()


@asynccontextmanager
async def open_repository(
    url: str,
    settings: Settings,
    revision: Which | None = None,
    manifest: Manifest | None = None,
    *,
    remembers: bool = True,
) -> AsyncIterator[Client]:
    """The repository at `url`, at its newest revision or at `revision`; its root is already in memory.

    `manifest` is given by who has it from an earlier opening, to go on with: then no server is asked. Without
    `remembers` nothing is written to the state directory: it is trusted for now, and by nobody else.

    The tasks that bring what is read live as long as the context. Raises CvfsError: no such repository, no server and
    nothing known before, a cache that cannot be used, a broken root page.
    """
    async with open_ground(settings, remembers=remembers) as ground:
        yield await ground.open(url, settings, revision, manifest)


@asynccontextmanager
async def open_ground(settings: Settings, *, remembers: bool = True) -> AsyncIterator["Ground"]:
    """What all repositories of a process have in common, for as long as the context.

    Raises ConfigError: a cache that cannot be used.
    """
    with _cache(settings) as cache, contextlib.ExitStack() as until_closed:
        async with _services() as nursery:
            ground = Ground(cache, nursery, until_closed, remembers=remembers)
            nursery.start_soon(keep_within_limits, cache.quota)
            nursery.start_soon(give_back_when_idle, ground.memory)
            yield ground


class Ground(msgspec.Struct, frozen=True):
    """What all repositories of a process share: the cache, what is held in memory, the network, and a nursery for what
    they do unasked."""

    cache: Cache
    nursery: trio.Nursery
    until_closed: contextlib.ExitStack
    networks: dict[Hashable, Network] = msgspec.field(default_factory=dict)
    memory: Shared = msgspec.field(default_factory=Shared)
    exploding: trio.Lock = msgspec.field(default_factory=trio.Lock)
    remembers: bool = True
    """Whether what comes to be trusted is written to the state directory."""

    async def open(
        self,
        url: str,
        settings: Settings,
        revision: Which | None = None,
        manifest: Manifest | None = None,
        root_inode: int = ROOT_INODE,
        label: str = "",
    ) -> Client:
        """As `open_repository`; until it is closed, or the ground is. Cancelled, or after an error: nothing is left.

        Inode numbers are made of `label`, or without one of the name that the publisher gave the repository.
        """
        url = check_base_url(url)
        network = self.network(settings)
        transport = network.transport.sibling()
        mirrors = Mirrors(network, [url, *settings.mirrors], transport)
        directory, anchor = settings.state / state_key(url), _anchor(url, settings, manifest)
        heads = Heads(mirrors, url, directory, anchor, remembers=self.remembers)
        opener = _Opener(url, mirrors, heads, self, settings, root_inode, label)
        repository = await opener.open(revision) if manifest is None else await opener.open_at(manifest)
        fetcher, unasked = repository.fetcher, trio.CancelScope()
        self.nursery.start_soon(look_after, fetcher, self.exploding, unasked)
        return Client(url, repository, heads, fetcher, self.cache, transport, mirrors, unasked)

    def network(self, settings: Settings) -> Network:
        """The network as `settings` want it used; what is learned of it is shared. Raises ConfigError."""
        ca, credentials = settings.ca, settings.credentials
        key = settings.proxies, ca, credentials, settings.connect_deadline_s, settings.deadline_s
        if key not in self.networks:
            transport = Transport(
                user_agent=f"cvfs/{cvfs.__version__}",
                connect_timeout_s=settings.connect_deadline_s,
                ca_file=None if ca is None else str(ca),
                credentials=None if credentials is None else load_credentials(credentials),
            )
            self.until_closed.callback(transport.close)
            self.networks[key] = Network(transport, settings.proxies, patience_s=settings.deadline_s / 3)
            self.nursery.start_soon(self.networks[key].watch)
        return self.networks[key]


def _anchor(url: str, settings: Settings, manifest: Manifest | None) -> Anchor:
    """Where trust begins. Whoever goes on with a manifest that was trusted can do so when a root.json is gone."""
    try:
        return find_anchor(
            url,
            settings.roots,
            root=settings.root,
            sha256=settings.root_sha256,
            first_use=settings.trust_on_first_use,
            name=settings.name,
        )
    except ConfigError as error:
        if manifest is None:
            raise
        log.warning("%s", error)
        return Anchor()


class _Opener(msgspec.Struct, frozen=True):
    """Finds the newest revision whose root can be read, and trusts it."""

    url: str
    mirrors: Mirrors
    heads: Heads
    ground: Ground
    settings: Settings
    root_inode: int
    label: str

    async def open(self, revision: Which | None) -> Repository:
        """The newest revision, or `revision`."""
        known = self.heads.head
        head = await self.heads.current(self.settings.start_deadline_s, self.settings.known_deadline_s)
        if self.settings.strict_freshness and self.heads.is_expired and head.problem:
            raise expired(self.heads)
        try:
            repository = await self.open_at(await self._at(head, revision))
        except CvfsError as error:
            if known is None or known.trusted.manifest == head.trusted.manifest:
                raise
            self.heads.complain(error)
            return await self.open_at(await self._at(known, revision))
        if not head.problem:
            await self.heads.accept(head)
        return repository

    async def open_at(self, manifest: Manifest) -> Repository:
        """The revision of `manifest`, its root in memory."""
        numbering = Numbering(self.label or manifest.repository)
        ground, deadline_s = self.ground, self.settings.deadline_s
        mirrors, cache, nursery = self.mirrors, ground.cache, ground.nursery
        fetcher = Fetcher(mirrors, cache, numbering, nursery, deadline_s=deadline_s, shared=ground.memory)
        repository = Repository(manifest, numbering, fetcher, self.root_inode)
        await bring_root(repository, self.url, self.settings.start_deadline_s)
        return repository

    async def _at(self, head: Head, revision: Which | None) -> Manifest:
        if revision is None:
            return head.manifest
        revisions = Revisions(self.mirrors, self.settings.state / state_key(self.url), self.ground.remembers)
        return await revisions.find(head, revision, self.settings.start_deadline_s)


async def bring_root(repository: Repository, url: str, deadline_s: float) -> None:
    """Return once the root of `repository` has been read and verified. Raises what `Repository.bring` does."""
    with trio.move_on_after(deadline_s):
        await repository.bring(lambda: repository.find_nowait(b""))
        return
    what = f"the root of revision {repository.manifest.revision} did not come within {deadline_s:g} s"
    raise TooSlowError(url, what)


@contextlib.contextmanager
def _cache(settings: Settings) -> Iterator[Cache]:
    cache = Cache(settings.cache, Limits(settings.cache_limit, settings.keep_free).check())
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
