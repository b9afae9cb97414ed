"""cvfs refresh."""

from pathlib import Path

import click

from cvfs.cli import common


@click.command("refresh", epilog="Example: cvfs refresh /cvfs/software.example.org")
@click.argument("directory", type=Path)
def command(directory: Path) -> None:
    """Have the mount on DIRECTORY go on with the newest revision. Files that are open keep their content.

    In a mount of all repositories, DIRECTORY may be that of one; the mount itself means all that are in use, and has
    the configuration read again.
    """
    from cvfs.mount.changing import refresh_mount
    from cvfs.terminal import show_count

    status = refresh_mount(directory.absolute(), common.find_runtime())
    if "repositories" in status:
        used = [each for each in status["repositories"] if "revision" in each]
        known = show_count(len(status["repositories"]), "repository", "repositories")
        click.echo(f"{directory}: {known}, {len(used)} in use")
    else:
        click.echo(f"{directory}: revision {status['revision']} of {status['repository']}")
