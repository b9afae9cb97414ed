"""cvfs cp."""

import os
from typing import TYPE_CHECKING

import click

from cvfs.cli import common
from cvfs.cli.tree_progress import check, watching
from cvfs.config import Settings
from cvfs.errors import ConfigError

if TYPE_CHECKING:
    from cvfs.format.tree.lookup import Found
    from cvfs.trees.tally import Tally


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
    name once it is complete; one that cannot be copied is told of, and the others are copied. The root of the
    repository ("/") is copied as what it lists.
    """
    common.setup_quiet_logging()
    location, settings = common.locate(url)
    with watching("Copying", quiet=quiet) as (tally, _):
        common.run(lambda: _copy(location, settings, path, target, recursive, tally))
    check(tally, "run it again, or see the errors above")


async def _copy(url: str, settings: Settings, path: str, target: str, recursive: bool, tally: "Tally") -> None:
    from cvfs.mount.client import open_repository
    from cvfs.trees.copying import Copier
    from cvfs.trees.walk import resolve

    async with open_repository(url, settings, settings.which) as client:
        found = await resolve(client.repository, os.fsencode(path), follow=not recursive)
        if found.entry.is_directory and not recursive:
            raise ConfigError(f"{path} is a directory: copy it with all below it by -r")
        copier = Copier(client.repository, client.fetcher, tally)
        await copier.copy(found, _target_of(found, os.fsencode(target)))


def _target_of(found: "Found", target: bytes) -> bytes:
    """DEST itself, or a name in it."""
    name = found.entry.name
    if name and os.path.isdir(target):
        return os.path.join(target, name)
    return target.rstrip(b"/") or b"/"
