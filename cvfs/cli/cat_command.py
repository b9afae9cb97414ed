"""cvfs cat."""

import errno
import os
import sys

import click

from cvfs.cli import common
from cvfs.config import Settings
from cvfs.errors import PathError

BLOCK_BYTES = 4 << 20
"""Read at a time: the largest chunk there is, so each is verified once."""


@click.command("cat", epilog="Example: cvfs cat http://software.example.org etc/os-release")
@click.argument("url")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@common.storage_options
def command(url: str, paths: tuple[str, ...]) -> None:
    """Write the files PATH... of the repository at URL to standard output, one after the other.

    Symbolic links inside of the repository are followed. What is written was verified before.
    """
    common.setup_quiet_logging()
    location, settings = common.locate(url)
    common.run(lambda: _cat(location, settings, [os.fsencode(path) for path in paths]))
    sys.stdout.buffer.flush()


async def _cat(url: str, settings: Settings, paths: list[bytes]) -> None:
    from cvfs.file import File
    from cvfs.mount.client import open_repository
    from cvfs.trees.walk import resolve

    async with open_repository(url, settings, settings.which) as client:
        for path in paths:
            found = await resolve(client.repository, path)
            if not found.entry.is_regular:
                raise PathError(errno.EISDIR if found.entry.is_directory else errno.EINVAL, path)
            file = File(found, client.fetcher)
            for offset in range(0, found.entry.size, BLOCK_BYTES):
                sys.stdout.buffer.write(await file.read(offset, BLOCK_BYTES))
