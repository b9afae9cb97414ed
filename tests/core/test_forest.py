"""Many repositories under one root: whose an inode is, what is open, what a failure costs; against each one alone."""

import contextlib
import errno
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvfs import inodes
from cvfs.cache import Cache
from cvfs.config import Settings
from cvfs.errors import ConfigError, CvfsError, PathError, StaleInodeError, UnreachableError
from cvfs.fetcher import Fetcher
from cvfs.filesystem import FileSystem, Item
from cvfs.forest import NAMES_S, Forest
from cvfs.inodes import ROOT_INODE, Identity, Numbering
from cvfs.mirrors import Mirrors, Network
from cvfs.missing import Missing
from cvfs.model import Manifest
from cvfs.mount import member as member_module
from cvfs.mount import repositories as repositories_module
from cvfs.mount.member import Opened
from cvfs.mount.repositories import Repositories
from cvfs.mount.shown import Shown
from cvfs.mount.sites import Names, Site
from cvfs.repository import Repository
from cvfs.transport import Transport
from tests.small_store import SmallStore, Tree

NAMES = ("a.example.org", "b.example.org", "c.example.org")


@dataclass
class Host:
    """Sites in memory, stores on disk, one cache and what is shown; `failures` by name are raised by an opening."""

    top: Path
    listed: tuple[str, ...] = NAMES
    stamp: int = 1
    manifests: dict[str, Manifest] = field(default_factory=dict)
    failures: dict[str, CvfsError] = field(default_factory=dict)
    openings: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    hanging: bool = False

    def publish(self, trees: Mapping[str, Tree]) -> None:
        for name, tree in trees.items():
            (self.top / name).mkdir()
            self.manifests[name] = SmallStore(self.top / name / "store", name).publish(tree)

    def stamp_ns(self) -> int:
        return self.stamp

    def names(self) -> Names:
        return Names(self.listed, ("open.org",))

    def site(self, name: str) -> Site:
        return Site((self.top / name / "store").as_uri(), Settings(cache=self.top), None, name)

    @asynccontextmanager
    async def worker(self, shown: Shown | None = None) -> AsyncIterator[tuple[Forest, Repositories]]:
        """A forest as one process has it: nothing is open."""
        with contextlib.closing(Transport(user_agent="test")) as transport, contextlib.closing(self.cache()) as cache:
            async with trio.open_nursery() as nursery:
                network = Network(transport)

                async def open_site(site: Site, root_inode: int) -> Opened:
                    self.openings.append(site.name)
                    await trio.lowlevel.checkpoint()
                    if self.hanging:
                        await trio.sleep_forever()
                    if site.name in self.failures:
                        raise self.failures[site.name]
                    fetcher = Fetcher(Mirrors(network, [site.url]), cache, Numbering(site.name), nursery)
                    repository = Repository(self.manifests[site.name], fetcher.numbering, fetcher, root_inode)
                    client: Any = SimpleNamespace(close=partial(self.closed.append, site.name))
                    return Opened(site, client, FileSystem(repository))

                repositories = Repositories(self, cache.index, shown or Shown(None), open_site, nursery)
                await repositories.load()
                yield Forest(repositories, cache.index.find), repositories
                nursery.cancel_scope.cancel()

    def cache(self) -> Cache:
        return Cache(self.top / "cache")

    def run(self, work: Callable[[Forest, Repositories], Awaitable[Any]], shown: Shown | None = None) -> Any:
        async def main() -> Any:
            async with self.worker(shown) as (forest, repositories):
                return await work(forest, repositories)

        try:
            return trio.run(main)
        except BaseExceptionGroup as group:
            [error] = group.exceptions
            raise error from None


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def items(forest: Forest, inode: int) -> list[Item]:
    found: list[Item] = []
    cookie = 0
    while more := await forest.bring(partial(forest.listing_nowait, inode, cookie)):
        found += more
        cookie = more[-1].cookie
    return found


async def walk(forest: Forest, inode: int = ROOT_INODE, path: bytes = b"") -> dict[bytes, tuple[int, Any]]:
    """Path: inode, and what it is."""
    found: dict[bytes, tuple[int, Any]] = {}
    for item in (await items(forest, inode))[2:]:
        node = await forest.bring(lambda name=item.name: forest.lookup_nowait(inode, name))
        assert node.inode == item.node.inode
        below = path + b"/" + item.name
        found[below] = node.inode, await describe(forest, node.inode)
        if node.entry.is_directory:
            found |= await walk(forest, node.inode, below)
    return found


async def describe(forest: Forest, inode: int) -> Any:
    entry = (await forest.bring(lambda: forest.getattr_nowait(inode))).entry
    if entry.is_symlink:
        return await forest.bring(lambda: forest.readlink_nowait(inode))
    if not entry.is_regular:
        return None
    file = await forest.bring(lambda: forest.file_nowait(inode))
    return bytes(await file.read(0, 1000))


def expected(trees: Mapping[str, Tree]) -> dict[bytes, Any]:
    found: dict[bytes, Any] = {}
    for name, tree in trees.items():
        found[b"/" + name.encode()] = None
        for path, what in tree.items():
            parts = path.split(b"/")
            for count in range(1, len(parts)):
                found[b"/".join([b"", name.encode(), *parts[:count]])] = None
            found[b"/" + name.encode() + b"/" + path] = what.encode() if isinstance(what, str) else what
    return found


_LEAVES = st.sampled_from([b"x", b"y", b"same", "x", "d/y", None])
_TREES: st.SearchStrategy[Tree] = st.dictionaries(
    st.sampled_from([b"x", b"y", b"d/x", b"d/y", b"d/e/x", b"z"]), _LEAVES, max_size=6
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees=st.fixed_dictionaries(dict.fromkeys(NAMES, _TREES)), few=st.booleans())
def test_every_inode_is_its_own_and_any_worker_knows_whose(
    trees: Mapping[str, Tree], few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where numbers are few, so that files of different repositories would have the same."""
    whole = inodes._identity
    with tempfile.TemporaryDirectory() as top, monkeypatch.context() as patch:
        if few:
            patch.setattr(inodes, "_identity", lambda both: Identity(both % 8 + 2, whole(both).check))
        host = Host(Path(top))
        host.publish(trees)

        async def first(forest: Forest, _: Repositories) -> dict[bytes, tuple[int, Any]]:
            return await walk(forest)

        async def later(forest: Forest, _: Repositories) -> None:
            for inode, what in found.values():
                assert await describe(forest, inode) == what

        found = host.run(first)
        assert {path: what for path, (_, what) in found.items()} == expected(trees)
        numbers = [inode for inode, _ in found.values()]
        assert len(set(numbers)) == len(numbers)
        assert ROOT_INODE not in numbers
        host.run(later)


def test_root_is_listed_and_looked_at_without_opening_anything(host: Host) -> None:
    async def work(forest: Forest, _: Repositories) -> None:
        listing = forest.listing_nowait(ROOT_INODE) + forest.listing_nowait(ROOT_INODE, 2)
        assert [item.name for item in listing] == [b".", b"..", *(name.encode() for name in NAMES)]
        assert [item.cookie for item in listing] == [1, 2, 3, 4, 5]
        assert [item.name for item in forest.listing_nowait(ROOT_INODE, 3, 1)] == [b"b.example.org"]
        assert forest.listing_nowait(ROOT_INODE, 5) == []
        root = forest.getattr_nowait(ROOT_INODE)
        assert (root.entry.nlink, root.entry.mtime_ns, root.lasting_s) == (5, 1, NAMES_S)
        node = forest.lookup_nowait(ROOT_INODE, b"a.example.org")
        assert node.lasting_s == 0
        assert forest.getattr_nowait(node.inode) == node
        assert forest.xattrs_nowait(node.inode) == ()
        assert forest.xattr_nowait(node.inode, b"security.selinux") is None
        with pytest.raises(Missing):
            forest.xattr_nowait(node.inode, b"user.cvfs.revision")
        for name, number in ((b"none", errno.ENOENT), (b"\xff", errno.ENOENT), (b"x" * 256, errno.ENAMETOOLONG)):
            with pytest.raises(PathError) as caught:
                forest.lookup_nowait(ROOT_INODE, name)
            assert caught.value.errno == number
        for inode in (ROOT_INODE, node.inode):
            with pytest.raises(PathError, match="directory"):
                forest.file_nowait(inode)
            with pytest.raises(PathError, match="directory"):
                forest.read_parts_nowait(inode, 0, 1)
            with pytest.raises(PathError, match="Invalid argument"):
                forest.readlink_nowait(inode)
        with pytest.raises(StaleInodeError):
            forest.getattr_nowait(12345)
        assert host.openings == []

    host.run(work)


def test_many_who_ask_open_it_once_and_then_it_looks_like_itself(host: Host) -> None:
    host.publish({"a.example.org": {b"x": b"data"}})

    async def work(forest: Forest, _: Repositories) -> None:
        root = forest.lookup_nowait(ROOT_INODE, b"a.example.org").inode
        with pytest.raises(Missing):
            forest.lookup_nowait(root, b"x")
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(forest.bring, lambda: forest.lookup_nowait(root, b"x"))
        assert host.openings == ["a.example.org"]
        node = forest.getattr_nowait(root)
        assert (node.inode, node.lasting_s) == (root, NAMES_S)
        assert node.entry.mtime_ns
        assert forest.space(root).entries == forest.space().entries == 2

    host.run(work)


def test_failure_is_told_at_once_until_it_is_time_to_try_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(member_module.time, "monotonic", lambda: now)
    host.failures["a.example.org"] = UnreachableError("http://a", "refused")
    host.publish({"a.example.org": {b"x": b"data"}, "b.example.org": {b"x": b"data"}})

    async def work(forest: Forest, _: Repositories) -> None:
        nonlocal now
        roots = [forest.lookup_nowait(ROOT_INODE, name.encode()).inode for name in NAMES]

        async def look() -> None:
            await forest.bring(lambda: forest.lookup_nowait(roots[0], b"x"))

        with pytest.raises(UnreachableError):
            await look()
        for _ in range(3):
            with pytest.raises(UnreachableError):
                forest.lookup_nowait(roots[0], b"x")
        assert host.openings == ["a.example.org"]
        assert forest.lookup_nowait(ROOT_INODE, b"a.example.org").lasting_s == 0  # it is still listed
        await forest.bring(lambda: forest.lookup_nowait(roots[1], b"x"))
        now += 60
        with pytest.raises(UnreachableError):
            await look()
        assert host.openings.count("a.example.org") == 2
        del host.failures["a.example.org"]
        now += 60
        await look()

    host.run(work)


def test_nobody_waits_long_for_what_failed_and_hangs_now(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(member_module.time, "monotonic", lambda: now)
    monkeypatch.setattr(member_module, "GLANCE_S", 0.05)
    host.failures["a.example.org"] = UnreachableError("http://a", "refused")

    async def work(forest: Forest, _: Repositories) -> None:
        nonlocal now
        root = forest.lookup_nowait(ROOT_INODE, b"a.example.org").inode
        for _ in range(3):
            with trio.fail_after(5), pytest.raises(UnreachableError):
                await forest.bring(lambda: forest.lookup_nowait(root, b"x"))
            now, host.hanging = now + 60, True
        assert host.openings == ["a.example.org"] * 2  # the second is still under way

    host.run(work)


def test_unlisted_names_of_a_domain(host: Host) -> None:
    host.publish({"new.open.org": {b"x": b"data"}})
    host.failures["none.open.org"] = ConfigError("no repository at http://none")
    host.failures["down.open.org"] = UnreachableError("http://down", "refused")

    async def work(forest: Forest, repositories: Repositories) -> None:
        def look(name: bytes) -> Callable[[], Any]:
            return lambda: forest.lookup_nowait(ROOT_INODE, name)

        root = (await forest.bring(look(b"new.open.org"))).inode
        assert (await forest.bring(lambda: forest.lookup_nowait(root, b"x"))).entry.size == 4
        with pytest.raises(PathError) as caught:
            await forest.bring(look(b"none.open.org"))
        assert (caught.value.errno, caught.value.lasting_s) == (errno.ENOENT, 0)
        with pytest.raises(UnreachableError):
            await forest.bring(look(b"down.open.org"))
        with pytest.raises(PathError):
            forest.lookup_nowait(ROOT_INODE, b"new.closed.org")
        assert [tree.label for tree in repositories.listed_nowait()] == list(NAMES)
        assert host.openings == ["new.open.org", "none.open.org", "down.open.org"]

    host.run(work)


def test_worker_goes_on_with_what_another_has_opened(host: Host, tmp_path: Path) -> None:
    """Also with what is not listed; and never shows it as if nobody had opened it."""
    host.publish({"new.open.org": {b"x": b"data"}})
    shown = Shown(tmp_path / "shown")

    async def first(forest: Forest, _: Repositories) -> tuple[int, int]:
        root = (await forest.bring(lambda: forest.lookup_nowait(ROOT_INODE, b"new.open.org"))).inode
        shown.claim("new.open.org", host.manifests["new.open.org"])
        return root, (await forest.bring(lambda: forest.lookup_nowait(root, b"x"))).inode

    async def second(forest: Forest, _: Repositories) -> None:
        assert (await forest.bring(lambda: forest.getattr_nowait(root))).lasting_s == NAMES_S
        assert await describe(forest, inode) == b"data"

    async def meanwhile() -> None:
        async with host.worker(Shown(tmp_path / "shown")) as (other, _), host.worker(shown) as (forest, repositories):
            await first(forest, repositories)
            assert await describe(other, inode) == b"data"

    root, inode = host.run(first, shown)
    host.run(second, Shown(tmp_path / "shown"))
    for path in shown.files():
        path.unlink()
    trio.run(meanwhile)


def test_changed_configuration_is_seen(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(repositories_module.time, "monotonic", lambda: now)

    async def work(forest: Forest, _: Repositories) -> None:
        nonlocal now
        before = {item.name: item.node.inode for item in await items(forest, ROOT_INODE)}
        host.listed, host.stamp = ("b.example.org", "d.example.org"), 2
        assert forest.lookup_nowait(ROOT_INODE, b"a.example.org")  # not looked at yet
        now += NAMES_S
        after = {item.name: item.node.inode for item in await items(forest, ROOT_INODE)}
        assert list(after) == [b".", b"..", b"b.example.org", b"d.example.org"]
        assert after[b"b.example.org"] == before[b"b.example.org"]
        with pytest.raises(PathError):
            forest.lookup_nowait(ROOT_INODE, b"a.example.org")
        assert forest.getattr_nowait(ROOT_INODE).entry.mtime_ns == 2

    host.run(work)


def test_what_was_removed_and_added_is_closed(host: Host) -> None:
    """So is what was being opened meanwhile: it may have been the former one."""
    host.publish({name: {b"f": name.encode()} for name in NAMES})

    async def work(forest: Forest, repositories: Repositories) -> None:
        await walk(forest)
        assert not host.closed
        for number, listed in enumerate((NAMES[1:], NAMES), 2):
            host.listed, host.stamp = listed, number
            await repositories.load()
        assert host.closed == [NAMES[0]]
        before = len(host.openings)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(walk, forest)
            while len(host.openings) == before:
                await trio.lowlevel.checkpoint()
            repositories.forget(NAMES[0])
        assert host.openings[before:] == [NAMES[0]] * 2
        assert host.closed == [NAMES[0]] * 2

    host.run(work)


def test_names_whose_numbers_cannot_be_told_apart_are_not_both_shown(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inodes, "xxh3_64_intdigest", len)
    host.listed = ("a.example.org", "b.example.org", "other.example.org")

    async def work(forest: Forest, _: Repositories) -> None:
        assert [item.name for item in (await items(forest, ROOT_INODE))[2:]] == [b"a.example.org", b"other.example.org"]

    host.run(work)
    assert "b.example.org is not shown" in caplog.text


def test_configuration_that_cannot_be_read_changes_nothing(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    async def work(forest: Forest, repositories: Repositories) -> None:
        def fail() -> NoReturn:
            raise ConfigError("config.toml:1: nonsense")

        host.names = fail  # type: ignore[method-assign]
        await repositories.load()
        assert len(await items(forest, ROOT_INODE)) == 5

    host.run(work)
    assert "not read again: config.toml:1" in caplog.text
