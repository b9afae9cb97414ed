"""cvfs reload."""

from pathlib import Path

import click

from cvfs.cli import common


@click.command("reload", epilog="Example: pip install --upgrade cvfs && cvfs reload /mnt/software")
@click.argument("directory", type=Path)
def command(directory: Path) -> None:
    """Have the mount on DIRECTORY served by the code that is installed now. Nobody who uses it notices."""
    from cvfs.mount.changing import reload_mount

    status = reload_mount(directory.absolute(), common.find_runtime())
    click.echo(f"{status['mountpoint']}: version {status['version']}, process {status['worker_pid']}")
