"""cvfs refresh."""

from pathlib import Path

import click

from cvfs.cli import common


@click.command("refresh", epilog="Example: cvfs refresh /mnt/software")
@click.argument("directory", type=click.Path(path_type=Path))
def command(directory: Path) -> None:
    """Have the mount on DIRECTORY go on with the newest revision. Files that are open keep their content."""
    from cvfs.mount.changing import refresh_mount
    from cvfs.mount.runtime import Runtime

    status = refresh_mount(directory.absolute(), Runtime(common.host_settings().runtime))
    click.echo(f"{status['mountpoint']}: revision {status['revision']} of {status['repository']}")
