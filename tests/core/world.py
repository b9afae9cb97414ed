"""A published tree, a server that may misbehave, a cache directory, and clients: in this process and in others."""

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from cvfs.cache import Cache
from cvfs.cache.cache import NO_LIMITS
from cvfs.cache.space import Limits
from cvfs.fetcher import Budget, Fetcher, Shared
from cvfs.file import File
from cvfs.filesystem import FileSystem, Item, Node
from cvfs.format.blob import blob_path
from cvfs.format.manifest import decode_manifest, encode_manifest
from cvfs.format.tree.lookup import Found
from cvfs.inodes import ROOT_INODE, Numbering
from cvfs.mirrors import Mirrors, Network
from cvfs.model import BlobRef, Manifest
from cvfs.repository import Repository
from cvfs.transport import Transport
from tests.publisher.stores import NAME, Store, environment
from tests.servers import FaultyServer

T = TypeVar("T")


class Client:
    """All of the core over one cache."""

    def __init__(self, manifest: Manifest, fetcher: Fetcher, cache: Cache) -> None:
        self.fetcher, self.cache = fetcher, cache
        self.repository = Repository(manifest, fetcher.numbering, fetcher)
        self.fs = FileSystem(self.repository)

    async def lookup(self, path: bytes) -> Node:
        """As the kernel does it: name by name."""
        node = await self.fs.bring(lambda: self.fs.getattr_nowait(ROOT_INODE))
        for name in filter(None, path.split(b"/")):
            node = await self.fs.bring(lambda inode=node.inode, name=name: self.fs.lookup_nowait(inode, name))
        return node

    async def file(self, path: bytes) -> File:
        inode = (await self.lookup(path)).inode
        return await self.fs.bring(lambda: self.fs.file_nowait(inode))

    async def read(self, path: bytes, offset: int = 0, length: int = 1 << 40) -> bytes:
        file = await self.file(path)
        return bytes(await file.read(offset, length))

    async def explode(self) -> None:
        """Have what was read as plain files in the cache."""
        with trio.fail_after(20):
            # Packs that are just being stored are left.
            while not await self.fetcher.exploder.explode():  # noqa: ASYNC110
                await trio.sleep(0.01)

    async def items(self, path: bytes) -> list[Item]:
        """The whole listing, as readdir(3) gets it."""
        inode, found, cookie = (await self.lookup(path)).inode, [], 0
        while items := await self.fs.bring(partial(self.fs.listing_nowait, inode, cookie)):
            found += items
            cookie = items[-1].cookie
        return found

    async def found(self, path: bytes) -> Found:
        return await self.repository.bring(lambda: self.repository.find_nowait(path))

    async def pack_of(self, path: bytes) -> BlobRef:
        return (await self.found(path)).record.content.locations[0].pack


@asynccontextmanager
async def opened(
    url: str,
    manifest: Manifest,
    cache_path: Path,
    *,
    deadline_s: float = 10,
    budget: Budget | None = None,
    limits: Limits = NO_LIMITS,
) -> AsyncIterator[Client]:
    with (
        contextlib.closing(Transport(user_agent="test")) as transport,
        contextlib.closing(Cache(cache_path, limits)) as cache,
    ):
        async with trio.open_nursery() as nursery:
            mirrors, numbering = Mirrors(Network(transport), [url]), Numbering(manifest.repository)
            fetcher = Fetcher(mirrors, cache, numbering, nursery, deadline_s=deadline_s, shared=Shared(budget))
            yield Client(manifest, fetcher, cache)
            nursery.cancel_scope.cancel()


@dataclass
class World:
    """`store` behind `server`; clients use the cache directory `cache`."""

    top: Path
    store: Store
    server: FaultyServer
    small: Manifest | None = None
    """What another writer than the publisher has put into the store."""

    @property
    def manifest(self) -> Manifest:
        return self.small or self.store.manifest

    @property
    def cache(self) -> Path:
        return self.top / "cache"

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Make the repository's content equal to `files`."""
        tree = self.top / f"tree-{len(list(self.top.iterdir()))}"
        for name, data in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(data)
        self.store.publish(tree)

    def run(self, work: Callable[[Client], Awaitable[T]], cache: Path | None = None, **options: Any) -> T:
        """What `work` returns; a new client serves it."""

        async def main() -> T:
            async with opened(self.server.url, self.manifest, cache or self.cache, **options) as client:
                return await work(client)

        try:
            return trio.run(main)
        except BaseExceptionGroup as group:
            [error] = group.exceptions
            raise error from None

    def read(self, *paths: bytes, **options: Any) -> list[bytes]:
        """What is in each of `paths`, read in turn by a new client."""

        async def work(client: Client) -> list[bytes]:
            return [await client.read(path) for path in paths]

        return self.run(work, **options)

    def reader(self, *paths: str, extra: Iterable[str] = ()) -> "subprocess.Popen[str]":
        """A process that reads `paths`; see `tests.core.reader`."""
        manifest = self.top / "manifest.json"
        manifest.write_bytes(encode_manifest(self.manifest))
        arguments = [*extra, self.server.url, str(manifest), str(self.cache), *paths]
        line = [sys.executable, "-W", "error", "-m", "tests.core.reader", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, env=environment(), stdin=pipe, stdout=pipe, text=True)

    def answers(self, process: "subprocess.Popen[str]") -> dict[str, Any]:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        answers: dict[str, Any] = json.loads(output.splitlines()[-1])
        return answers

    def blob(self, ref: BlobRef) -> Path:
        return self.store.path / blob_path(ref.id)

    def url_path(self, ref: BlobRef) -> str:
        return "/" + blob_path(ref.id)

    def data_requests(self) -> dict[str, int]:
        return {path: count for path, count in self.server.requests.items() if path.startswith("/data/")}


@contextlib.contextmanager
def no_server(world: World) -> Any:
    """Nobody answers at the server's port for a while."""
    world.server.__exit__()
    try:
        yield
    finally:
        world.server.__enter__()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread, process or task brings about."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.01)


def make_world(top: Path) -> World:
    store = Store(top / "store")
    return World(top, store, FaultyServer(store.path))


def manifest_at(path: Path) -> Manifest:
    manifest = decode_manifest(path.read_bytes())
    assert manifest.repository == NAME
    return manifest
