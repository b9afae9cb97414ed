"""cvfs mount."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from cvfs.cli import common
from cvfs.errors import ConfigError
from cvfs.mount.ahead import BegunServer
from cvfs.mount.logs import log_name
from cvfs.mount.place import find_place
from cvfs.mount.request import (
    MountRequest,
    apply_options,
    encode_request,
    is_of_all,
    refuse_remount,
    settings_among,
)


@click.command("mount", epilog="Example: cvfs mount http://software.example.org /mnt/software")
@click.argument("url")
@click.argument("directory", type=Path, required=False)
@click.option("--all", "every", is_flag=True, help="Show every configured repository, each in a directory of its own.")
@click.option("-f", "--foreground", is_flag=True, help="Do not go to the background; for systemd.")
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Options as of mount(8), separated by commas.")
@click.option("--log-file", type=Path, metavar="FILE", help="Where the daemon logs to.")
@common.mount_options
@click.pass_obj
def command(
    ahead: BegunServer | None,
    url: str,
    directory: Path | None,
    every: bool,
    foreground: bool,
    options: tuple[str, ...],
    log_file: Path | None,
) -> None:
    """Mount the repository at URL on DIRECTORY, read-only, and return when it can be used.

    URL is http://..., https://..., file://..., the directory of a store, or the NAME of a configured repository.
    DIRECTORY must be empty, unless -o nonempty. A daemon serves the mount until `cvfs umount DIRECTORY`.

    With --all there is no URL: DIRECTORY/NAME is each repository that is configured, opened when it is first used.
    """
    refuse_remount(options)
    if every or is_of_all(options):
        request = _request_all("" if directory is None else url, Path(url) if directory is None else directory, options)
    else:
        request = _request_one(url, directory, options)
    request = apply_options(request, options)
    if ahead is None or ahead.foreground != foreground:
        raise ConfigError("write --foreground, -h and --help as words of their own, and never as values")
    log = None if foreground else _open_log(log_file, request)
    for warning in ahead.ask(encode_request(request), log):
        click.echo(f"cvfs: warning: {warning}", err=True)
    sys.stderr.flush()
    os._exit(0)  # at once: the interpreter would take all its modules apart first, for 15 ms


def _request_one(url: str, directory: Path | None, options: Sequence[str]) -> MountRequest:
    if directory is None:
        raise click.UsageError("Missing argument 'DIRECTORY'.")
    location, settings = common.configuration(settings_among(options)).locate(url)
    source = url if settings.url or "://" in url else ""
    return MountRequest(location, find_place(directory), settings, source=source)


def _request_all(source: str, directory: Path, options: Sequence[str]) -> MountRequest:
    """The options go with the request: what holds for a repository is known only when it is opened. `source` is what
    mount(8) was told to mount: by it, it knows what is mounted already."""
    said = common.options_said() | settings_among(options)
    settings = common.configuration(said).settings()
    if settings.which is not None:
        raise ConfigError("a revision is one of a repository: pin it in its file of the configuration")
    return MountRequest("", find_place(directory), settings, source=source, all=True, options=said)


def _open_log(log_file: Path | None, request: MountRequest) -> int:
    """The log of a daemon, `log_file` or a file of its own in the directory of logs. Raises ConfigError."""
    path = log_file.absolute() if log_file else request.settings.logs / log_name(request.directory)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY, 0o640)
    except OSError as error:
        raise ConfigError(f"cannot log to {path}: {error.strerror}; name another file with --log-file") from None
