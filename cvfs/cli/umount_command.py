"""cvfs umount."""

from pathlib import Path

import click

from cvfs.cli import common


@click.command("umount", epilog="Example: cvfs umount /mnt/software")
@click.argument("directory", type=Path)
@click.option("-l", "--lazy", is_flag=True, help="Take it out of sight now, and end when its last user has.")
def command(directory: Path, lazy: bool) -> None:
    """Unmount DIRECTORY, and return when the daemon that served it has ended."""
    from cvfs.mount.unmounting import unmount_and_wait

    unmount_and_wait(directory.absolute(), common.find_runtime(), lazy=lazy)
