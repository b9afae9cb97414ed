"""What is behind `cvfs cache pin` and `unpin`."""

import contextlib
import os
from collections import ChainMap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from cvfs.cli import common
from cvfs.cli.located import find_repository
from cvfs.cli.tree_progress import Expect, check_cached, check_room, watching
from cvfs.config import Settings
from cvfs.errors import CacheFullError, ConfigError
from cvfs.terminal import show_count, show_size

if TYPE_CHECKING:
    from cvfs.cache.pins import About, Pins
    from cvfs.format.tree.lookup import Found
    from cvfs.model import BlobRef
    from cvfs.mount.client import Client
    from cvfs.trees.prefetching import Stock
    from cvfs.trees.tally import Tally

PINNED_SHARE = 0.75
"""Of the limit, at most, may be pinned: what is left is turned over the faster."""


def pin_paths(url: str, paths: Sequence[str], *, quiet: bool) -> None:
    """Pin, then bring what is pinned. Raises CacheFullError: it is too much; nothing has changed then. PartialError:
    not all is in the cache."""
    common.setup_quiet_logging()
    url, paths = find_repository(url, paths)
    location, settings = common.locate(url)
    with watching("Fetching", quiet=quiet) as (tally, expect):
        stock = common.run(lambda: _pin(location, settings, paths or ("/",), tally, expect))
    if not quiet:
        click.echo(f"{show_count(stock.files, 'file')}, {show_size(stock.size_bytes)} are pinned")
    check_cached(tally, stock)


def unpin_paths(url: str, paths: Sequence[str]) -> None:
    """Raises ConfigError: one of them is not pinned. Asks a server only if no pin says which repository `url` is."""
    from cvfs.cache.directory import CacheDirectory
    from cvfs.cache.pins import Pins

    common.setup_quiet_logging()
    url, paths = find_repository(url, paths)
    pins = Pins(CacheDirectory(common.host_settings().cache))
    names = _names_pinned(pins, url) or {_name_of(url)}
    for path in paths or ("/",):
        removed = [pins.remove(name, _plain(path)) for name in names]
        if not any(removed):
            raise ConfigError(f"{path!r} of {', '.join(names)} is not pinned: `cvfs cache info` lists what is")


def _names_pinned(pins: "Pins", text: str) -> set[str]:
    """What the repositories are called that a user may mean who writes `text`, as far as pins tell: by its address,
    else by its name. It need not be configured any more, nor have a server."""
    address, found = text, pins.all()
    with contextlib.suppress(ConfigError):
        address, _ = common.locate(text)
    of_address = {pin["repository"] for pin in found if pin["url"].rstrip("/") == address.rstrip("/")}
    return of_address or {pin["repository"] for pin in found if pin["repository"] == text}


def _name_of(text: str) -> str:
    """The name that the repository has itself, which its pins go by. Raises what `open_repository` does."""
    location, settings = common.locate(text)

    async def ask() -> str:
        from cvfs.mount.client import open_repository

        async with open_repository(location, settings, settings.which) as client:
            return client.repository.manifest.repository

    return common.run(ask)


async def _pin(url: str, settings: Settings, paths: Sequence[str], tally: "Tally", expect: Expect) -> "Stock":
    """What the cache has in the end."""
    from cvfs.mount.client import open_repository
    from cvfs.trees.prefetching import Prefetcher, take_stock
    from cvfs.trees.walk import resolve

    async with open_repository(url, settings, settings.which) as client:
        tops, lists = [], []
        for path in paths:
            tops.append(await resolve(client.repository, os.fsencode(path)))
            lists.append(await _list(client, tops[-1]))
        expect(sum(each.size_bytes for each in lists))
        client.fetcher.keep_as_files()
        stock = await take_stock(client.repository, client.fetcher, tops)
        disk_bytes = sum(ChainMap(*(each.ids for each in lists)).values())  # paths may be below one another
        _check_size(client, {top.record.path for top in tops}, disk_bytes)
        check_room(client.cache, stock, disk_bytes)
        for top, each in zip(tops, lists, strict=True):
            about = {"url": url, "revision": client.repository.manifest.revision}
            about |= {"files": each.files, "bytes": each.size_bytes, "disk_bytes": sum(each.ids.values())}
            name = client.repository.manifest.repository
            client.cache.quota.pins.put(name, top.record.path, each.ids, about)
        prefetcher = Prefetcher(client.repository, client.fetcher, tally)
        for top in tops:
            await prefetcher.bring(top)
        return await take_stock(client.repository, client.fetcher, tops)


def _plain(path: str) -> bytes:
    """As records have it. What is unpinned need not exist any more, so it cannot be looked up."""
    return b"/".join(part for part in os.fsencode(path).split(b"/") if part not in (b"", b"."))


class _List:
    """The ids of all that it takes to read what is at `top` and below, metadata too, and what that takes on the disk:
    `on_disk` says it of a file of the cache by its size."""

    def __init__(self, on_disk: Callable[[int], int]) -> None:
        self.ids: dict[bytes, int] = {}
        """What each takes on the disk."""
        self.files = self.size_bytes = 0
        self._on_disk = on_disk

    def add(self, found: "Found") -> None:
        from cvfs.cache.large import recipe_of

        entry, content = found.entry, found.record.content
        self.add_pages([found.page])
        if not entry.is_regular:
            return
        self.files += 1
        self.size_bytes += entry.size
        self.add_pages(page for _, page in content.location_pages)
        if not content.location_pages and not any(each.chunk_id for each in content.locations):
            self._add(entry.content_id, entry.size)
            return
        listed = sum(each.length for each in content.locations)  # the rest is holes, which take no space
        self._add(recipe_of(entry, content), entry.size if content.location_pages else listed)

    def add_pages(self, pages: "Iterable[BlobRef]") -> None:
        for page in pages:
            self._add(page.id, page.stored_size)

    def _add(self, name: bytes, size_bytes: int) -> None:
        """What many files have alike is in the cache once."""
        if name not in self.ids:
            self.ids[name] = self._on_disk(size_bytes)


async def _list(client: "Client", top: "Found") -> _List:
    """What it takes to read `top`, which has just been resolved: the pages on the way to it are still in memory. Those
    below it, and above these, may be more than memory holds."""
    from cvfs.trees.walk import list_tree

    found, repository, leaves = _List(client.cache.quota.on_disk), client.repository, set()
    on_the_way = client.fetcher.pages_in_memory()
    found.add_pages([repository.manifest.root])
    async for each in list_tree(repository, top):
        if each.page.id not in leaves:
            leaves.add(each.page.id)
            found.add_pages(await repository.bring(partial(repository.pages_above_nowait, each.leaf)))
        found.add(each)
    for page in on_the_way:
        found.ids.setdefault(page, 0)  # a few, whose sizes are not known
    return found


def _check_size(client: "Client", paths: set[bytes], disk_bytes: int) -> None:
    """Raises CacheFullError: `disk_bytes` more, for these paths, are too much beside what is pinned for others."""
    replaced = {(client.repository.manifest.repository, os.fsdecode(path)) for path in paths}
    others = [pin for pin in client.cache.quota.pins.all() if (pin["repository"], pin["path"]) not in replaced]
    pinned = sum(pin_disk_bytes(pin) for pin in others)
    most = int(client.cache.quota.use().limit_bytes * PINNED_SHARE)
    if pinned + disk_bytes > most:
        what = f"{show_size(disk_bytes)} (on the disk) more than the {show_size(pinned)} that are pinned"
        raise CacheFullError(f"cannot pin {what}: at most {show_size(most)} may be; raise cache_limit, or name less")


def pin_disk_bytes(pin: "About") -> int:
    """What a pin takes; of one that an older version has made, the bytes of its files."""
    return int(pin["disk_bytes" if "disk_bytes" in pin else "bytes"])
