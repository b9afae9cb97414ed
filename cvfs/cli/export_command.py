"""cvfs export."""

import errno
import os
import time
from typing import TYPE_CHECKING

import click

from cvfs import terminal
from cvfs.cli import common
from cvfs.cli.tree_progress import Expect, check, watching
from cvfs.config import Settings
from cvfs.errors import PathError
from cvfs.terminal import show_count, show_size

if TYPE_CHECKING:
    from cvfs.trees.tally import Tally


@click.command("export", epilog="Example: cvfs export http://software.example.org lib/python3.11 /opt/python")
@click.argument("url")
@click.argument("path")
@click.argument("directory", metavar="DIR")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no summary.")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON.")
@common.storage_options
def command(url: str, path: str, directory: str, quiet: bool, as_json: bool) -> None:
    """Make DIR a plain copy of the directory PATH of the repository at URL.

    DIR is made if it is not there. Run again after an interruption, it goes on: a file of the right size and time is
    taken for copied. Nothing is removed from DIR but what an export that was killed had not completed. Modes, times,
    symbolic and hard links, holes and extended attributes are kept, owners too as root. Every byte is verified before
    it is written.
    """
    common.setup_quiet_logging()
    location, settings = common.locate(url)
    started = time.monotonic()
    os.makedirs(os.path.dirname(os.path.abspath(directory)), exist_ok=True)
    with watching("Exporting", quiet=quiet) as (tally, expect):
        common.run(lambda: _export(location, settings, os.fsencode(path), directory, tally, expect))
    _report(tally, time.monotonic() - started, quiet=quiet, as_json=as_json)
    check(tally, "run it again to go on")


async def _export(url: str, settings: Settings, path: bytes, directory: str, tally: "Tally", expect: Expect) -> None:
    from cvfs.mount.client import open_repository
    from cvfs.trees.copying import Copier
    from cvfs.trees.prefetching import measure
    from cvfs.trees.walk import resolve

    async with open_repository(url, settings, settings.which) as client:
        found = await resolve(client.repository, path)
        if not found.entry.is_directory:
            raise PathError(errno.ENOTDIR, path)
        expect((await measure(client.repository, found)).size_bytes)
        copier = Copier(client.repository, client.fetcher, tally, resume=True)
        await copier.copy(found, os.fsencode(directory).rstrip(b"/") or b"/")


def _report(tally: "Tally", took_s: float, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        terminal.print_json(
            {
                "files": tally.files,
                "size_bytes": tally.size_bytes,
                "present": tally.present,
                "failed": tally.failed,
                "seconds": round(took_s, 3),
            }
        )
    elif not quiet:
        text = f"{show_count(tally.files, 'file')}, {show_size(tally.size_bytes)}"
        click.echo(f"{text}; {tally.present:,} of them were there already; {took_s:.1f} s")
