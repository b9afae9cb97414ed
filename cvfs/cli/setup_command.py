"""cvfs setup."""

import subprocess
from pathlib import Path

import click

from cvfs.errors import ConfigError

_SYSTEMD = Path("/run/systemd/system")


@click.command("setup", epilog="Example: cvfs setup && mount -t cvfs software.example.org /mnt")
@click.option("--prefix", type=Path, default=Path("/"), metavar="DIR", help="Install below DIR instead of /.")
@click.option("--remove", is_flag=True, help="Take away what `cvfs setup` has installed.")
def command(prefix: Path, remove: bool) -> None:
    """Make this cvfs known to the system: mount.cvfs for mount(8), systemd units, a manual page, shell completion.

    Prints the files. A file of the same name that `cvfs setup` has not made is left alone.
    """
    from cvfs.cli import installation

    change = installation.remove if remove else installation.install
    try:
        changed = change(prefix.absolute())
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}; root can") from None
    for path in changed:
        click.echo(path)
    if prefix == Path("/") and _SYSTEMD.exists():
        subprocess.run(["systemctl", "daemon-reload"], check=False)
