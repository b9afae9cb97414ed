"""What a mount shows: one repository at its root, or many, each in a directory. The rest of it knows no difference."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from cvfs.errors import CvfsError
from cvfs.filesystem import FileSystem, View
from cvfs.flights import Flights
from cvfs.forest import Forest
from cvfs.inodes import ROOT_INODE
from cvfs.mount.appearance import appearance_of
from cvfs.mount.client import Client, Ground
from cvfs.mount.freshness import StrictFileSystem
from cvfs.mount.member import Member, Opened
from cvfs.mount.repositories import Repositories
from cvfs.mount.request import MountRequest
from cvfs.mount.shown import Shown
from cvfs.mount.sites import ConfiguredSites, Site

log = logging.getLogger(__name__)

ALONE: Final = ""
"""What a repository is called that is mounted at the root."""

ALL: Final = "cvfs"
"""What df(1) shows as the device of a mount of many."""


OnOpen = Callable[[Member, Opened], None]
OnAnew = Callable[[str], None]


class Mounted(Protocol):
    """The repositories of a mount. `on_open(member, opened)` is called when one has been opened, `on_anew(label)` when
    one has to be opened anew, since another repository may have taken its name."""

    on_open: OnOpen
    on_anew: OnAnew

    @property
    def view(self) -> View:
        """What an engine shows, once started."""

    @property
    def source(self) -> str:
        """What the kernel lists as the device."""

    async def start(self) -> None:
        """Find out what there is to show. Raises CvfsError: nothing."""

    async def reload(self) -> None:
        """Look again at what there is to show, and forget what could not be opened."""

    def forget(self, label: str) -> None:
        """Open it anew, as another worker does."""

    def changed(self) -> Sequence[str]:
        """The names of which the kernel may still believe that they are there, or not."""

    async def problems(self) -> list[str]:
        """What is wrong with the configuration of what is to be shown."""

    def members(self) -> Sequence[Member]: ...
    def member(self, label: str) -> Member | None: ...


def mounted_by(request: MountRequest, ground: Ground, shown: Shown) -> Mounted:
    """What `request` asks for, each repository to be opened on `ground` at the revision that is `shown`."""
    return _Many(request, ground, shown) if request.all else _One(request, ground, shown)


class _One:
    def __init__(self, request: MountRequest, ground: Ground, shown: Shown) -> None:
        site = Site(request.url, request.settings, request.revision)
        self.on_open: OnOpen = lambda member, opened: None
        self.on_anew: OnAnew = lambda label: None
        self._member = Member(ALONE, ROOT_INODE, Flights(ground.nursery), self._open, lambda: True)
        self._work = partial(_open_site, ground, shown, site, ROOT_INODE)
        self.source = request.url

    @property
    def view(self) -> View:
        return self._member.filesystem_nowait()

    async def start(self) -> None:
        await self._member.open()

    async def reload(self) -> None:
        """It is always the same one."""

    def forget(self, label: str) -> None:
        """It cannot become another."""

    def changed(self) -> Sequence[str]:
        return ()

    async def problems(self) -> list[str]:
        """It was read when the mount was made."""
        return []

    def members(self) -> Sequence[Member]:
        return [self._member]

    def member(self, label: str) -> Member | None:
        return self._member if label == ALONE else None

    async def _open(self, member: Member) -> Opened:
        opened = await self._work()
        self.on_open(member, opened)
        return opened


class _Many:
    def __init__(self, request: MountRequest, ground: Ground, shown: Shown) -> None:
        opener = partial(_open_site, ground, shown)
        index = ground.cache.index
        self._repositories = Repositories(ConfiguredSites(request.options), index, shown, opener, ground.nursery)
        self._repositories.on_open = self._opened
        self._repositories.on_anew = self._anew
        self.on_open: OnOpen = lambda member, opened: None
        self.on_anew: OnAnew = lambda label: None
        self.view: View = Forest(self._repositories, index.find)
        self.source = ALL

    async def start(self) -> None:
        await self._repositories.load()

    async def reload(self) -> None:
        try:
            await self._repositories.load()
        except CvfsError as error:  # the disk of the inode index fails, or is full
            log.error("the repositories stay those that were known: %s", error)  # noqa: TRY400
        self._repositories.forgive()

    def forget(self, label: str) -> None:
        self._repositories.forget(label)

    def changed(self) -> Sequence[str]:
        return self._repositories.changed()

    async def problems(self) -> list[str]:
        return await self._repositories.problems()

    def members(self) -> Sequence[Member]:
        return self._repositories.members()

    def member(self, label: str) -> Member | None:
        return self._repositories.member(label)

    def _opened(self, member: Member, opened: Opened) -> None:
        self.on_open(member, opened)

    def _anew(self, label: str) -> None:
        self.on_anew(label)


async def _open_site(ground: Ground, shown: Shown, site: Site, root_inode: int) -> Opened:
    """Open a repository at the revision that other workers of the mount show, or if it is the first, at its newest."""
    settings, known = site.settings, shown.manifest(site.name)
    client = await ground.open(site.url, settings, site.revision, known, root_inode, site.name)
    filesystem = _filesystem(client, site)
    follow(shown, site.name, filesystem, claim=True)
    return Opened(site, client, filesystem)


def follow(shown: Shown, label: str, filesystem: FileSystem, *, claim: bool = False) -> None:
    """Have `filesystem` show what all workers show; with `claim`, what it shows if nobody shows anything yet."""
    repository = filesystem.repository
    manifest = shown.claim(label, repository.manifest) if claim else shown.manifest(label)
    if manifest is not None and manifest != repository.manifest:
        filesystem.switch(repository.at(manifest))


def _filesystem(client: Client, site: Site) -> FileSystem:
    appearance = appearance_of(site.settings)
    if site.settings.strict_freshness:
        return StrictFileSystem(client.repository, client.heads, appearance)
    return FileSystem(client.repository, appearance)
