"""The commands of `cvfs-publisher`. What a command needs is imported when it runs, so that each begins at once."""

import click

from cvfs import __version__
from publisher.cli import (
    check_command,
    diff_command,
    gc_command,
    init_command,
    key_command,
    log_command,
    publish_command,
    remove_command,
    resign_command,
    rollback_command,
    serve_command,
    tag_command,
)
from publisher.cli.common import PROGRAM


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Publish directory trees as repositories that cvfs mounts."""


for _module in (
    check_command,
    diff_command,
    gc_command,
    init_command,
    key_command,
    log_command,
    publish_command,
    remove_command,
    resign_command,
    rollback_command,
    serve_command,
    tag_command,
):
    cli.add_command(_module.command)
