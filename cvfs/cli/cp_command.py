"""cvfs cp."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from cvfs.cli import common
from cvfs.config import Settings
from cvfs.errors import PathError

if TYPE_CHECKING:
    from cvfs.format.tree.lookup import Found

Report = Callable[[int, int], None]


@click.command("cp", epilog="Example: cvfs cp -r http://software.example.org lib/python3.11 /tmp/python")
@click.argument("url")
@click.argument("path")
@click.argument("target", metavar="DEST")
@click.option("-r", "-R", "recursive", is_flag=True, help="A directory, with all below it.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
@common.storage_options
def command(
    url: str,
    path: str,
    target: str,
    recursive: bool,
    quiet: bool,
) -> None:
    """Copy PATH of the repository at URL to DEST, or into it if DEST is a directory.

    Modes, times, symbolic and hard links and extended attributes are kept, owners too as root. A file appears under its
    name once it is complete. The root of the repository ("/") is copied as what it lists.
    """
    common.setup_quiet_logging()
    location, settings = common.locate(url)
    with _progress(quiet) as report:
        common.run(lambda: _copy(location, settings, path, target, recursive, report))


async def _copy(url: str, settings: Settings, path: str, target: str, recursive: bool, report: Report) -> None:
    from cvfs.mount.client import open_repository
    from cvfs.mount.copying import Copier
    from cvfs.mount.walk import resolve

    async with open_repository(url, settings, settings.which) as client:
        found = await resolve(client.repository, common.path_bytes(path), follow=not recursive)
        if found.entry.is_directory and not recursive:
            raise PathError(errno.EISDIR, f"{path}: use -r")
        copier = Copier(client.repository, client.fetcher, report)
        await copier.copy(found, _target_of(found, common.path_bytes(target)))


def _target_of(found: "Found", target: bytes) -> bytes:
    """DEST itself, or a name in it."""
    name = found.entry.name
    if name and os.path.isdir(target):
        return os.path.join(target, name)
    return target.rstrip(b"/") or b"/"


@contextmanager
def _progress(quiet: bool) -> Iterator[Report]:
    """Files and bytes so far, on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda files, size_bytes: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

    columns = (SpinnerColumn(), TextColumn("{task.fields[files]} files"), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("copying", total=None, files=0)
        done = 0

        def report(files: int, size_bytes: int) -> None:
            nonlocal done
            done += files
            progress.update(task, advance=size_bytes, files=done)

        yield report
