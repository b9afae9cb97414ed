"""When a switch of the revision is over: not before all workers have followed, and the kernel was told after that."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cvfs.format.manifest import decode_manifest
from cvfs.fuse.invalidate import Changes
from cvfs.fuse.link import Message
from cvfs.model import Manifest
from cvfs.mount.followers import FOLLOW_S, Followers, PendingSwitch
from cvfs.mount.refresher import AGAIN_S, Refresher
from tests.small_store import SmallStore


class Orders:
    """The supervisor, as far as it is needed; it knows the workers `pids`."""

    def __init__(self, *pids: int) -> None:
        self.pids, self.said = pids, list[Message]()
        self.followers: Followers

    def say(self, kind: str, **fields: Any) -> None:
        self.said.append(fields["message"])
        self.followers.receive_receipt({"receipt": fields["receipt"], "to": list(self.pids)})

    def confirm(self, pid: int, revision: int, label: str = "") -> None:
        self.followers.receive_confirmation({"pid": pid, "revision": revision, "label": label})


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "store").mkdir()
    return SmallStore(tmp_path / "store").publish({b"file": b"content"})


async def announced(orders: Orders, manifest: Manifest, nursery: trio.Nursery) -> PendingSwitch:
    orders.followers = Followers(orders, nursery)  # type: ignore[arg-type]
    return await orders.followers.announce("", manifest)


def run(main: Any, *arguments: Any) -> None:
    trio.run(main, *arguments, clock=trio.testing.MockClock(autojump_threshold=0))


def test_who_is_alone_waits_for_nobody_and_says_it_all_the_same(manifest: Manifest) -> None:
    """There may be a successor that does not answer the kernel yet."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            orders = Orders()
            following = await announced(orders, manifest, nursery)
            assert following.complete.is_set()
            assert trio.current_time() == started
            assert decode_manifest(orders.said[0]["manifest"].encode()) == manifest

    async def timed() -> None:
        nonlocal started
        started = trio.current_time()
        await main()

    started = 0.0
    run(timed)


def test_all_must_have_followed_to_this_revision(manifest: Manifest) -> None:
    async def main(one: int, other: int) -> None:
        async with trio.open_nursery() as nursery:
            orders, late = Orders(one, other), list[str]()
            started = trio.current_time()
            following = await announced(orders, manifest, nursery)
            assert trio.current_time() == started + FOLLOW_S
            following.listener = lambda: late.append("complete")
            orders.confirm(one, manifest.revision)
            orders.confirm(other, manifest.revision - 1)  # what it was told earlier
            orders.confirm(other, manifest.revision, "another")
            orders.confirm(1, manifest.revision)  # a worker that does not answer the kernel
            following.repeat()
            assert not following.complete.is_set()
            assert len(orders.said) == 2
            orders.confirm(other, manifest.revision)
            assert following.complete.is_set()
        assert late == ["complete"]

    with waiting_process() as one, waiting_process() as other:
        run(main, one.pid, other.pid)


def test_who_has_ended_need_not_follow(manifest: Manifest) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            following = await announced(Orders(gone.pid, other.pid), manifest, nursery)
            assert not following.complete.is_set()
            assert other.stdin is not None
            other.stdin.close()
            with trio.fail_after(20):
                await following.complete.wait()

    with waiting_process() as other:
        with waiting_process() as gone:
            pass
        trio.run(main)


def waiting_process() -> "subprocess.Popen[bytes]":
    """It ends with its input, at the end of the context."""
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE)


def test_the_kernel_is_told_again_when_the_last_one_has_followed() -> None:
    """What is told then is all that has changed since everybody agreed."""
    told: list[Changes] = []
    settled: list[float] = []
    refresher = make_refresher(told, settled)

    async def main() -> None:
        following = PendingSwitch()
        following.expect([7])
        await refresher._tell(Changes([(1, b"one")], {1}), following)
        assert (len(told), settled) == (2, [])
        following.repeat = lambda: repeated.append(True)
        await refresher._follow_up()
        assert (len(told), repeated) == (2, [True])
        newer = PendingSwitch()
        newer.expect([7])
        await refresher._tell(Changes([(1, b"two")], {2}), newer)
        assert (len(told), settled) == (4, [])
        newer.confirm(7)
        assert refresher._wanted.is_set()
        confirmed = trio.current_time()
        await refresher._follow_up()
        assert settled == [confirmed + AGAIN_S]
        await refresher._follow_up()
        assert len(told) == 6
        assert (told[-1].names, told[-1].directories) == ([(1, b"one"), (1, b"two")], {1, 2})

    repeated: list[bool] = []
    run(main)


def make_refresher(told: list[Changes], settled: list[float]) -> Refresher:
    class Client:
        heads = type("Heads", (), {"head": None, "problem": "", "is_expired": False})
        mirrors = type("Mirrors", (), {"network": type("Network", (), {"listeners": []})})

    async def invalidate(changes: Changes) -> None:
        told.append(Changes([*changes.names], {*changes.directories}))
        await trio.lowlevel.checkpoint()

    def settle() -> None:
        settled.append(trio.current_time())

    return Refresher(Client(), None, None, invalidate, None, settle)  # type: ignore[arg-type]


def test_who_asks_a_refresher_that_has_ended_does_not_wait() -> None:
    refresher = make_refresher([], [])
    refresher._filesystem = type("FileSystem", (), {"repository": None})  # type: ignore[assignment]
    refresher.end()
    run(refresher.now)
