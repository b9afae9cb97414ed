"""Repositories put together: what is left of one that is closed while others of its process go on."""

import gc
from pathlib import Path

import trio
import trio.testing

from cvfs.config import Settings
from cvfs.filesystem import FileSystem
from cvfs.inodes import ROOT_INODE
from cvfs.mount.client import open_ground
from cvfs.mount.refresher import Refresher
from tests.in_trio import in_trio
from tests.servers import FaultyServer
from tests.small_store import SmallStore

DATA = {b"read": bytes(1000), b"not yet": b"new" * 100_000}


@in_trio
async def test_what_is_closed_does_nothing_unasked_and_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = SmallStore(tmp_path / "store")
    store.publish(DATA)
    settings = Settings(cache=tmp_path / "cache", state=tmp_path / "state", root=store.root)
    with FaultyServer(store.path) as server:
        async with open_ground(settings) as ground:
            network = ground.network(settings)
            await trio.testing.wait_all_tasks_blocked()
            before = set(ground.nursery.child_tasks)
            client = await ground.open(server.url, settings)
            filesystem = FileSystem(client.repository)
            refresher = Refresher(client, filesystem, settings, _nothing, _nothing, _nothing)  # type: ignore[arg-type]
            assert set(ground.nursery.child_tasks) > before
            assert bytes(await _read(filesystem, b"read")) == DATA[b"read"]
            client.close()
            refresher.end()
            await client.fetcher.wait_until_stored()
            await trio.testing.wait_all_tasks_blocked()
            assert set(ground.nursery.child_tasks) == before
            assert bytes(await _read(filesystem, b"not yet")) == DATA[b"not yet"]
            await client.fetcher.wait_until_stored()
            del client, filesystem, refresher
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            assert not network.listeners
            assert not list(network._known), "its server is looked after no more"


async def _read(filesystem: FileSystem, name: bytes) -> bytes | memoryview:
    node = await filesystem.bring(lambda: filesystem.lookup_nowait(ROOT_INODE, name))
    file = await filesystem.bring(lambda: filesystem.file_nowait(node.inode))
    return await file.read(0, node.size)


async def _nothing(*_: object) -> None:
    """Nobody is told anything."""
