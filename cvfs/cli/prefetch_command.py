"""cvfs prefetch."""

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from cvfs import terminal
from cvfs.cli import common
from cvfs.cli.located import find_repository
from cvfs.cli.tree_progress import Expect, check_cached, check_room, watching
from cvfs.config import Settings
from cvfs.terminal import show_count, show_size

if TYPE_CHECKING:
    from cvfs.fetcher import Counters
    from cvfs.trees.prefetching import Stock
    from cvfs.trees.tally import Tally


@click.command("prefetch", epilog="Example: cvfs prefetch http://software.example.org lib/python3.11 bin")
@click.argument("url")
@click.argument("paths", metavar="PATH...", nargs=-1)
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no summary.")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON.")
@common.storage_options
def command(url: str, paths: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Bring PATH... (default: all) of the repository at URL into this host's cache, with all below it.

    In place of URL and PATH..., paths below a mount may be named.

    Everything that mounts of this host read there afterwards is local. What is in the cache already is verified and not
    fetched again, so an interrupted prefetch goes on when it is run again.

    The exit status is 1 if anything is not in the cache in the end. What is larger than the cache may be is refused at
    once.
    """
    common.setup_quiet_logging()
    url, within = find_repository(url, paths)
    location, settings = common.locate(url)
    started = time.monotonic()
    with watching("Fetching", quiet=quiet) as (tally, expect):
        stock, counters = common.run(lambda: _prefetch(location, settings, within or ("/",), tally, expect))
    _report(tally, stock, counters, time.monotonic() - started, quiet=quiet, as_json=as_json)
    check_cached(tally, stock)


async def _prefetch(
    url: str, settings: Settings, paths: Sequence[str], tally: "Tally", expect: Expect
) -> "tuple[Stock, Counters]":
    """What the cache has in the end, and what that took."""
    from cvfs.mount.client import open_repository
    from cvfs.trees.prefetching import Prefetcher, take_stock
    from cvfs.trees.walk import resolve

    async with open_repository(url, settings, settings.which) as client:
        tops = [await resolve(client.repository, os.fsencode(path)) for path in paths]
        stock = await take_stock(client.repository, client.fetcher, tops)
        check_room(client.cache, stock, stock.disk_bytes)
        expect(stock.size_bytes)
        prefetcher = Prefetcher(client.repository, client.fetcher, tally)
        for top in tops:
            await prefetcher.bring(top)
        stock = await take_stock(client.repository, client.fetcher, tops)
        return stock, client.fetcher.counters


def _report(tally: "Tally", stock: "Stock", counters: "Counters", took_s: float, *, quiet: bool, as_json: bool) -> None:
    files, size_bytes = stock.files - stock.lacking_files, stock.size_bytes - stock.lacking_bytes
    if as_json:
        terminal.print_json(
            {
                "files": files,
                "size_bytes": size_bytes,
                "failed": tally.failed,
                "fetched_blobs": counters.fetched_blobs,
                "fetched_bytes": counters.fetched_bytes,
                "uncached": stock.lacking_files,
                "uncached_bytes": stock.lacking_bytes,
                "seconds": round(took_s, 3),
            }
        )
    elif not quiet:
        text = f"{show_count(files, 'file')}, {show_size(size_bytes)} are in the cache"
        fetched = f"{show_size(counters.fetched_bytes)} in {show_count(counters.fetched_blobs, 'request')}"
        click.echo(f"{text}; fetched {fetched}; {took_s:.1f} s")
