"""cvfs mount."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click

import cvfs
from cvfs.cli import common
from cvfs.mount.request import (
    MountRequest,
    apply_options,
    choose_engine,
    encode_request,
    settings_among,
)


@click.command("mount", epilog="Example: cvfs mount http://software.example.org /mnt/software")
@click.argument("url")
@click.argument("directory", type=Path)
@click.option("-f", "--foreground", is_flag=True, help="Do not go to the background; for systemd.")
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Options as of mount(8), separated by commas.")
@click.option("--log-file", type=Path, metavar="FILE", help="Where the daemon logs to.")
@common.mount_options
def command(
    url: str,
    directory: Path,
    foreground: bool,
    options: tuple[str, ...],
    log_file: Path | None,
) -> None:
    """Mount the repository at URL on DIRECTORY, read-only, and return when it can be used.

    URL is http://..., https://..., file://..., the directory of a store, or the NAME of a configured repository.
    DIRECTORY must be empty, unless -o nonempty. A daemon serves the mount until `cvfs umount DIRECTORY`.
    """
    location, settings = common.configuration(settings_among(options)).locate(url)
    request = MountRequest(
        url=location,
        directory=_resolve(directory),
        settings=settings,
        source=url if settings.url or "://" in url else "",
    )
    request = apply_options(request, options)
    supervised = choose_engine(settings.engine) == "channel"
    if not foreground:
        _serve_in_background(request, log_file, supervised)
    elif supervised:
        _supervise(request, -1)
    else:
        _serve(request, lambda warnings: None)


def _resolve(directory: Path) -> Path:
    """The canonical path, found without asking what is mounted there: that may hang, or be dead."""
    absolute = directory.absolute()
    return absolute.parent.resolve() / absolute.name if absolute.name != ".." else absolute.resolve()


def _supervise(request: MountRequest, ready: int) -> NoReturn:
    """Go on as the supervisor, a small process. It need not find its code where this one has, by the directory."""
    from cvfs.mount.supervise import python

    root = str(Path(cvfs.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [*python(), "-m", "cvfs.mount.supervise", encode_request(request), str(ready)]
    os.execve(command[0], command, os.environ | {"PYTHONPATH": path})  # noqa: S606


def _serve_in_background(request: MountRequest, log_file: Path | None, supervised: bool) -> None:
    from cvfs.mount.daemon import exec_in_background, run_in_background
    from cvfs.mount.logs import log_name

    log_file = log_file.absolute() if log_file else request.settings.logs / log_name(request.directory)
    if supervised:
        warnings = exec_in_background(lambda ready: _supervise(request, ready), log_file, keep_group=request.keep_group)
    else:
        warnings = run_in_background(lambda ready: _serve(request, ready), log_file, keep_group=request.keep_group)
    for warning in warnings:
        click.echo(f"cvfs: warning: {warning}", err=True)


def _serve(request: MountRequest, ready: Callable[[list[str]], None]) -> None:
    from cvfs.mount.logs import setup_logging

    recent = setup_logging()
    gc.disable()  # imports make no garbage: looking for it costs them a tenth of their time
    from cvfs.mount.worker import run_mount

    gc.freeze()
    gc.enable()
    run_mount(request, recent, lambda: ready([event.message for event in recent.events]))
