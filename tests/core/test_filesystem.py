"""The file system by inode: names, attributes, listings; against a model, and at size."""

import errno
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from cvfs.errors import PathError, StaleInodeError
from cvfs.fetcher import Budget
from cvfs.filesystem import END, Item
from cvfs.inodes import ROOT_INODE
from tests.core.world import Client, World, make_world
from tests.publisher.stores import NAME, environment
from tests.small_store import MANIFEST, SmallStore
from tests.trees import Directory, Facts, File, Link, Node, Special, Symlink, make_tree, snapshot, trees

TREE: Mapping[bytes, Node | Link] = {
    b"bin": Directory(),
    b"bin/tool": File(data=b"#!", mode=0o755, xattrs={b"user.a": b"1", b"user.b": b"\0"}),
    b"bin/same": Link(b"bin/tool"),
    b"lib": Directory(),
    b"lib/deep": Directory(),
    b"lib/deep/er": Directory(),
    b"link": Symlink(target=b"bin/tool"),
    b"fifo": Special(),
    b"empty": Directory(),
}


@pytest.fixture
def small(world: World, tmp_path: Path) -> World:
    make_tree(tmp_path / "tree", TREE)
    world.store.publish(tmp_path / "tree")
    return world


def refuses(number: int, question: Callable[[], object]) -> None:
    with pytest.raises(PathError) as caught:
        question()
    assert caught.value.errno == number


def test_errors_are_those_of_posix(small: World) -> None:
    async def work(client: Client) -> None:
        fs = client.fs
        nodes = {
            name: (await client.lookup(name)).inode for name in (b"bin", b"bin/tool", b"link", b"fifo", b"lib/deep")
        }
        for inode in (ROOT_INODE, nodes[b"bin"]):
            refuses(errno.ENOENT, lambda inode=inode: fs.lookup_nowait(inode, b"nothing"))
            refuses(errno.ENAMETOOLONG, lambda inode=inode: fs.lookup_nowait(inode, b"x" * 256))
            refuses(errno.ENOENT, lambda inode=inode: fs.lookup_nowait(inode, b"x" * 255))
            refuses(errno.ENOENT, lambda inode=inode: fs.lookup_nowait(inode, b""))
            refuses(errno.EISDIR, lambda inode=inode: fs.file_nowait(inode))
            refuses(errno.EINVAL, lambda inode=inode: fs.readlink_nowait(inode))
        for name in (b"bin/tool", b"link", b"fifo"):
            refuses(errno.ENOTDIR, lambda name=name: fs.lookup_nowait(nodes[name], b"x"))
            refuses(errno.ENOTDIR, lambda name=name: fs.listing_nowait(nodes[name]))
        refuses(errno.EINVAL, lambda: fs.file_nowait(nodes[b"link"]))
        refuses(errno.EINVAL, lambda: fs.file_nowait(nodes[b"fifo"]))
        refuses(errno.EINVAL, lambda: fs.readlink_nowait(nodes[b"fifo"]))
        for path, number in ((b"bin/tool/x", errno.ENOTDIR), (b"no/x", errno.ENOENT), (b"no", errno.ENOENT)):
            refuses(number, lambda path=path: client.repository.find_nowait(path))

    small.run(work)


def test_numbers_that_nobody_gave_out_are_stale(small: World) -> None:
    async def work(client: Client) -> None:
        await client.lookup(b"bin")
        for inode in (0, 2, 12345, (1 << 64) - 1):
            with pytest.raises(StaleInodeError):
                await client.fs.bring(lambda inode=inode: client.fs.getattr_nowait(inode))
            with pytest.raises(StaleInodeError):
                client.fs.listing_nowait(inode)

    small.run(work)


def test_an_index_that_lies_is_not_believed(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(client: Client) -> None:
        tool, link = await client.lookup(b"bin/tool"), await client.lookup(b"link")
        wrong = client.cache.index.find(link.inode)
        assert wrong is not None
        beyond = wrong._replace(position=60_000)
        for place in (wrong, beyond, wrong._replace(repository=5)):
            monkeypatch.setattr(client.cache.index, "find", lambda _, place=place: place)
            client.fs.switch(client.repository)  # what it has just shown it would not ask the index for
            with pytest.raises(PathError) as caught:
                await client.fs.bring(lambda: client.fs.getattr_nowait(tool.inode))
            assert caught.value.errno == errno.ESTALE

    small.run(work)


def test_numbers_that_the_index_has_lost_are_found_again(small: World) -> None:
    """As where a disk gave zeros for a block. Not again within a minute: somebody may ask for what never was."""

    async def work(client: Client) -> None:
        fs = client.fs
        inodes = {name: (await client.lookup(name)).inode for name in (b"bin/tool", b"lib/deep/er", b"link")}
        lose_numbers(client)
        fs.switch(client.repository)  # what was just shown is known without the index
        for inode in inodes.values():
            assert (await fs.bring(lambda inode=inode: fs.getattr_nowait(inode))).inode == inode
        lose_numbers(client)
        fs.switch(client.repository)
        with pytest.raises(StaleInodeError):
            await fs.bring(lambda: fs.getattr_nowait(inodes[b"link"]))

    small.run(work)


def lose_numbers(client: Client) -> None:
    """All are gone from the table of the index; its list of leaves is not."""
    for part in client.cache.index._places.parts:
        table = part.table._map
        table[4096:] = bytes(len(table) - 4096)


def test_attributes_links_and_xattrs(small: World) -> None:
    async def work(client: Client) -> None:
        fs = client.fs
        tool, same = await client.lookup(b"bin/tool"), await client.lookup(b"bin/same")
        assert tool.inode == same.inode
        assert (tool.entry.nlink, tool.size, tool.blocks) == (2, 2, 1)
        assert fs.xattrs_nowait(tool.inode) == ((b"user.a", b"1"), (b"user.b", b"\0"))
        assert fs.readlink_nowait((await client.lookup(b"link")).inode) == b"bin/tool"
        root = fs.getattr_nowait(ROOT_INODE)
        assert (root.inode, stat.S_ISDIR(root.entry.mode), root.entry.nlink) == (ROOT_INODE, True, 5)
        for path in TREE:
            node = await client.lookup(path)
            assert fs.getattr_nowait(node.inode).entry.mode == node.entry.mode
        assert fs.space().entries == len(TREE) + 1

    small.run(work)


def test_a_number_is_explained_by_a_process_that_never_looked_it_up(small: World) -> None:
    async def numbers(client: Client) -> dict[bytes, int]:
        return {path: (await client.lookup(path)).inode for path in TREE}

    async def ask(client: Client) -> None:
        for path, inode in known.items():
            node = await client.fs.bring(lambda inode=inode: client.fs.getattr_nowait(inode))
            assert (node.inode, node.entry.mode) == (inode, (await client.lookup(path)).entry.mode)
        deep = known[b"lib/deep"]
        assert [item.name for item in client.fs.listing_nowait(deep, 2)] == [b"er"]

    known = small.run(numbers)
    small.run(ask)


def test_dots(small: World) -> None:
    async def work(client: Client) -> None:
        for path, above in (
            (b"", b""),
            (b"lib", b""),
            (b"lib/deep", b"lib"),
            (b"lib/deep/er", b"lib/deep"),
            (b"empty", b""),
        ):
            dot, dotdot, *rest = await client.items(path)
            assert (dot.name, dotdot.name) == (b".", b"..")
            assert dot.node.inode == (await client.lookup(path)).inode
            assert dotdot.node.inode == (await client.lookup(above)).inode
            assert not {item.name for item in rest} & {b".", b"..", b""}

    small.run(work)


# Listings of many pages


def many(count: int) -> dict[str, bytes]:
    return {f"many/{i:06}": b"" for i in range(count)} | {"after": b"", "many-more/x": b"", "many/sub/x": b""}


def plain(items: list[Item]) -> list[tuple[bytes, int, int]]:
    return [(item.name, item.node.inode, item.cookie) for item in items]


def test_every_cookie_resumes_behind_its_line(world: World) -> None:
    world.publish(many(5000))

    async def whole(client: Client) -> tuple[int, list[Item]]:
        return (await client.lookup(b"many")).inode, await client.items(b"many")

    inode, items = world.run(whole)
    names = [b".", b"..", *sorted([b"%06d" % i for i in range(5000)] + [b"sub"])]
    assert [item.name for item in items] == names
    assert items[-1].cookie == END or items[-1].cookie >> 32 > 0
    assert len({item.cookie >> 32 for item in items}) > 3

    async def resume(client: Client) -> None:
        fs = client.fs
        for place in [*range(0, 5003, 17), 5000, 5001, 5002]:  # in any order; at first nothing is remembered
            rest = await fs.bring(lambda place=place: fs.listing_nowait(inode, items[place].cookie))
            assert plain(rest) == plain(items[place + 1 :][: len(rest)])
            assert bool(rest) == (place < 5002)

    async def backwards(client: Client) -> None:
        fs = client.fs
        for place in range(5002, 0, -500):
            rest = await fs.bring(lambda place=place: fs.listing_nowait(inode, items[place].cookie))
            assert plain(rest) == plain(items[place + 1 :][: len(rest)])

    world.run(resume)
    world.run(backwards)


def test_cookie_of_a_run_beyond_a_thousand_in_a_fresh_client(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What resumes far into a huge directory goes through the runs before, one after the other."""
    world.publish(many(3000))

    async def work(client: Client) -> None:
        inode = (await client.lookup(b"many")).inode
        whole = type(client.repository).listing_nowait

        def small_runs(repository: object, directory: bytes, after: bytes = b"") -> object:
            found = whole(client.repository, directory, after)
            return found if found is None else found.__class__(found.page, leaf_of(found), 0, 0)

        def leaf_of(found: object) -> object:
            group = found.group  # type: ignore[attr-defined]
            at = found.index  # type: ignore[attr-defined]
            one = group._replace(names=group.names[at : at + 1], entries=group.entries[at : at + 1])
            return found.leaf._replace(groups=[one])  # type: ignore[attr-defined]

        monkeypatch.setattr(client.repository, "listing_nowait", small_runs.__get__(client.repository))
        fs = client.fs
        found = await fs.bring(lambda: fs._run_nowait(inode, b"many", 2500))
        assert found is not None
        assert found.group.names == [b"002500"]

    world.run(work)


@pytest.mark.timeout(20)
def test_cookies_that_nobody_was_given_are_answered_at_once(world: World) -> None:
    """lseek(2) on a directory takes any number."""
    world.publish(many(100))

    async def work(client: Client) -> None:
        fs, inode = client.fs, (await client.lookup(b"many")).inode
        for cookie in (0x7FFFFFFF00000000, (1 << 63) - 1, 1 << 32, 5000):
            assert await fs.bring(lambda cookie=cookie: fs.listing_nowait(inode, cookie)) == []

    world.run(work)


def test_hundred_thousand_names(world: World) -> None:
    world.small = SmallStore(world.store.path, NAME).publish({b"%06d" % i: "x" for i in range(100_000)})

    async def work(client: Client) -> None:
        items = await client.items(b"")
        assert [item.name for item in items[2:]] == [b"%06d" % i for i in range(100_000)]
        assert len({item.node.inode for item in items}) == 100_001
        assert client.fetcher._pages._memory.weight <= 4_000_000

    world.run(work, budget=Budget(page_bytes=4_000_000))


# Random trees


async def facts(client: Client, path: bytes) -> Facts:
    node = await client.lookup(path)
    entry = node.entry
    regular = stat.S_ISREG(entry.mode)
    data = await client.read(path) if regular else b""
    if regular:
        file = client.fs.file_nowait(node.inode)
        half = len(data) // 2
        assert bytes(await file.read(half, half + 1)) == data[half : half + half + 1]
    size = node.size if not stat.S_ISDIR(entry.mode) else 0
    rest = (entry.nlink, entry.rdev, (), data, entry.target, entry.xattrs)
    return Facts(entry.mode, entry.uid, entry.gid, entry.mtime_ns, size, *rest)


async def walk(client: Client, path: bytes = b"") -> dict[bytes, Facts]:
    found = {path: await facts(client, path)}
    if stat.S_ISDIR(found[path].mode):
        for item in (await client.items(path))[2:]:
            below = path + b"/" + item.name if path else item.name
            assert item.node == await client.lookup(below)
            found |= await walk(client, below)
    return found


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(tree=trees())
def test_random_trees_equal_what_was_published(tree: dict[bytes, Node | Link]) -> None:
    with tempfile.TemporaryDirectory() as top:
        world = make_world(Path(top))
        make_tree(Path(top) / "tree", tree)
        wanted = snapshot(Path(top) / "tree", count_links=True)
        world.store.publish(Path(top) / "tree")
        with world.server:
            assert world.run(walk) == {
                path: fact._replace(names=(), size=0 if stat.S_ISDIR(fact.mode) else fact.size)
                for path, fact in wanted.items()
            }


_WALK = """
import sys, trio
from pathlib import Path
from tests.core.world import manifest_at, opened
from tests.core.reader import _rss_kib

async def main(url, manifest, cache):
    async with opened(url, manifest_at(Path(manifest)), Path(cache)) as client:
        before, count = _rss_kib(), 0
        for directory in (await client.items(b""))[2:]:
            count += len(await client.items(directory.name)) - 2
        print(count, _rss_kib() - before)

trio.run(main, *sys.argv[1:])
"""


def test_memory_is_bounded_while_a_large_tree_is_walked(world: World) -> None:
    tree: dict[bytes, str] = {b"d%03d/name-%06d" % (i // 1000, i): "target" for i in range(300_000)}
    SmallStore(world.store.path, NAME).publish(tree)
    line = [sys.executable, "-c", _WALK, world.server.url, str(world.store.path / MANIFEST), str(world.cache)]
    output = subprocess.run(line, env=environment(), capture_output=True, check=True, timeout=100).stdout
    count, grown_kib = map(int, output.split())
    assert count == 300_000
    assert grown_kib < 64 << 10  # a peak; all of it at once would be 150 MB and more
