"""What was shown last: never wrong, never too much, and gone with its revision."""

import errno
import random
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvfs import seen as seen_module
from cvfs.errors import PathError
from cvfs.fetcher import PageMissing
from cvfs.format.pages import Group, Key, Leaf
from cvfs.format.tree.lookup import Found
from cvfs.inodes import ROOT_INODE
from cvfs.model import BlobRef, Digest
from cvfs.repository import Repository
from cvfs.seen import Seen, Where
from tests.core.world import Client, World
from tests.publisher.stores import NAME
from tests.small_store import SmallStore

PAGES = [BlobRef(Digest(bytes([number]) * 32), 1, 1) for number in range(3)]
LEAF = Leaf((), [Group(b"", [], (), ())], [b""], Key(b"", b""), Key(b"", b""))

shown = st.tuples(st.integers(2, 60), st.integers(0, 2), st.integers(0, 3), st.integers(0, 9), st.integers(0, 5))


@given(st.lists(shown, max_size=80))
def test_against_a_table_that_forgets_nothing(lines: list[tuple[int, int, int, int, int]]) -> None:
    """Whatever is known is the last that was noted; the last so many are; and it never grows beyond twice as many."""
    bound = 8
    seen = Seen()
    everything: dict[int, Where] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen_module, "_NUMBERS", bound)
        for first, page, number, index, count in lines:
            found = Found(PAGES[page], LEAF, number, index)
            noted = range(first, first + max(count, 1))
            if count:
                seen.note_all(noted, found, index)
            else:
                seen.note(first, found)
            for at, inode in enumerate(noted):
                everything.pop(inode, None)
                everything[inode] = Where(PAGES[page], number, index + at)
            for inode in range(70):
                assert seen.where(inode) in (None, everything.get(inode))
            for inode in list(everything)[-bound + 5 :]:
                assert seen.where(inode) == everything[inode]
            assert len(seen) <= 2 * (bound + 5)


def refuse_index(patch: pytest.MonkeyPatch, client: Client) -> None:
    def refused(number: int) -> None:
        raise AssertionError(f"the index was asked for {number:#x}")

    patch.setattr(client.cache.index, "find", refused)


def test_index_is_not_asked_for_what_was_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish({"d/1": b"1", "d/2": b"22", "d/3": b"333", "f": b""})

    async def work(client: Client) -> None:
        fs = client.fs
        directory = (await client.lookup(b"d")).inode
        await client.read(b"d/3")  # from now on it is in the cache
        fs.switch(client.repository)
        await client.lookup(b"d")
        looked_up = await client.lookup(b"f")
        refuse_index(monkeypatch, client)
        first, _, _ = fs.listing_nowait(directory, 2)
        fs._seen = Seen()
        second, third = fs.listing_nowait(directory, first.cookie)
        with pytest.raises(AssertionError):
            fs.getattr_nowait(first.node.inode)
        for node in (second.node, third.node):
            assert fs.getattr_nowait(node.inode) == node
        assert fs.read_parts_nowait(third.node.inode, 0, 4096) == (b"333",)
        assert fs.lookup_nowait(ROOT_INODE, b"f") == fs.getattr_nowait(looked_up.inode) == looked_up

    world.run(work)


def test_what_was_shown_holds_on_to_no_page(world: World) -> None:
    """Its page is brought again like any other."""
    world.publish({"f": b"1"})

    async def work(client: Client) -> None:
        node = await client.lookup(b"f")
        client.fetcher._pages._memory.clear()
        with pytest.raises(PageMissing):
            client.fs.getattr_nowait(node.inode)
        assert await client.fs.bring(lambda: client.fs.getattr_nowait(node.inode)) == node

    world.run(work)


def test_switch_to_another_revision(world: World) -> None:
    """Names are those of the new one from then on, numbers mean what they did."""
    store = SmallStore(world.store.path, NAME)
    world.small = store.publish({b"d/same": b"same", b"d/changed": b"old", b"d/gone": b"gone"})

    async def work(client: Client) -> None:
        fs, old = client.fs, {}
        for name in (b"same", b"changed", b"gone"):
            old[name] = await client.lookup(b"d/" + name)
            assert await client.read(b"d/" + name) == (b"old" if name == b"changed" else name)
        directory = (await client.lookup(b"d")).inode
        await client.items(b"d")
        new = store.publish({b"d/same": b"same", b"d/changed": b"new!", b"d/come": b"come"})
        fs.switch(client.repository.at(new))
        assert len(fs._seen) == 0
        assert (await client.lookup(b"d")).inode == directory
        assert (await client.lookup(b"d/same")) == old[b"same"]
        changed = await client.lookup(b"d/changed")
        assert changed.inode != old[b"changed"].inode
        assert await client.read(b"d/changed") == b"new!"
        assert await client.read(b"d/come") == b"come"
        with pytest.raises(PathError) as refused:
            await client.lookup(b"d/gone")
        assert refused.value.errno == errno.ENOENT
        listed = {item.name: item.node for item in await client.items(b"d")}
        assert listed[b"changed"] == changed
        assert b"gone" not in listed
        for name, node in old.items():  # who has it open
            assert await fs.bring(partial(fs.getattr_nowait, node.inode)) == node
            file = await fs.bring(partial(fs.file_nowait, node.inode))
            assert bytes(await file.read(0, 10)) == (b"old" if name == b"changed" else name)
        fs.switch(Repository(client.repository.manifest, client.fetcher.numbering, client.fetcher))
        assert (await client.lookup(b"d/changed")) == old[b"changed"]

    world.run(work)


def test_small_file_that_is_read_at_once_is_kept_in_no_table(world: World) -> None:
    world.publish({"small": b"12345", "empty": b"", "large": random.Random(1).randbytes(5 << 20)})

    async def work(client: Client) -> None:
        fs = client.fs
        inodes = {name: (await client.lookup(name)).inode for name in (b"small", b"empty", b"large")}
        await client.read(b"small")
        fs._files.clear()
        for length in (5, 4096):
            assert fs.read_parts_nowait(inodes[b"small"], 0, length) == (b"12345",)
        assert fs.read_parts_nowait(inodes[b"empty"], 0, 4096) == ()
        assert len(fs._files) == 0
        assert fs.read_parts_nowait(inodes[b"small"], 0, 2) == (b"12",)  # there is more to come
        assert fs.read_parts_nowait(inodes[b"small"], 2, 4096) == (b"345",)
        assert fs.read_parts_nowait(inodes[b"large"], 0, 4096) is None
        assert set(fs._files) == {inodes[b"small"], inodes[b"large"]}
        with pytest.raises(PathError) as refused:
            fs.read_parts_nowait(ROOT_INODE, 0, 1)
        assert refused.value.errno == errno.EISDIR

    world.run(work)
