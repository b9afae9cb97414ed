"""cvfs ls."""

import os
import stat
import sys
import time
from typing import TYPE_CHECKING

import click

from cvfs.cli import common
from cvfs.config import Settings

if TYPE_CHECKING:
    from cvfs.model import Entry
    from cvfs.repository import Repository


@click.command("ls", epilog="Example: cvfs ls -l http://software.example.org usr/bin")
@click.argument("url")
@click.argument("path", default="")
@click.option("-l", "long", is_flag=True, help="Mode, links, owner, size and time too.")
@click.option("-R", "recursive", is_flag=True, help="All below PATH as well, each with its path in the repository.")
@click.option("-d", "directory", is_flag=True, help="The directory itself, not what it lists.")
@click.option("-0", "--zero", is_flag=True, help="End each line with NUL instead of a newline; for scripts.")
@common.storage_options
def command(
    url: str,
    path: str,
    long: bool,
    recursive: bool,
    directory: bool,
    zero: bool,
) -> None:
    """List PATH (default: the root) of the repository at URL, sorted by name.

    URL is http://..., https://..., file://... or the directory of a store. On a terminal, control characters in names
    are shown as escapes; elsewhere names are written as they are.
    """
    common.setup_quiet_logging()
    lister = _Lister(long, recursive, directory, zero)
    location, settings = common.locate(url)
    common.run(lambda: lister.list(location, settings, os.fsencode(path)))
    sys.stdout.buffer.flush()


class _Lister:
    def __init__(self, long: bool, recursive: bool, directory: bool, zero: bool) -> None:
        self._long, self._recursive, self._directory = long, recursive, directory
        self._end = b"\0" if zero else b"\n"
        self._escape = not zero and sys.stdout.isatty()

    async def list(self, url: str, settings: Settings, path: bytes) -> None:
        from cvfs.mount.client import open_repository
        from cvfs.trees.walk import resolve

        async with open_repository(url, settings, settings.which) as client:
            found = await resolve(client.repository, path, follow=not self._long or path.endswith(b"/"))
            if found.entry.is_directory and not self._directory:
                await self._list_directory(client.repository, found.record.path)
            else:
                self._print(found.entry, path or b"/")

    async def _list_directory(self, repository: "Repository", directory: bytes) -> None:
        from cvfs.model import join
        from cvfs.trees.walk import list_runs

        pending = [directory]
        while pending:
            above = pending.pop()
            below = []
            async for run in list_runs(repository, above):
                for found in run:
                    path = join(above, found.entry.name)
                    self._print(found.entry, path if self._recursive else found.entry.name)
                    if self._recursive and found.entry.is_directory:
                        below.append(path)
            pending += reversed(below)

    def _print(self, entry: "Entry", name: bytes) -> None:
        line = common.printable(name, escape=self._escape)
        if self._long:
            line = b"%s %s" % (_facts(entry).encode(), line)
            if entry.is_symlink:
                line += b" -> " + common.printable(entry.target, escape=self._escape)
        sys.stdout.buffer.write(line + self._end)


def _facts(entry: "Entry") -> str:
    """What `ls -l` shows before the name; owners as numbers, since names belong to the host."""
    size = str(entry.size)
    if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
        import os

        size = f"{os.major(entry.rdev)}, {os.minor(entry.rdev)}"
    owner = f"{entry.uid:>5} {entry.gid:>5}"
    return f"{stat.filemode(entry.mode)} {entry.nlink:>3} {owner} {size:>11} {_time(entry.mtime_ns)}"


def _time(mtime_ns: int) -> str:
    """Local time to the minute; seconds since 1970 where the calendar ends."""
    seconds = mtime_ns // 1_000_000_000
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"@{seconds}"
