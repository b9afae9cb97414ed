"""cvfs-publisher check."""

import click
import msgspec

from cvfs import terminal
from cvfs.terminal import show_count, show_size
from publisher.cli.common import PROGRAM, json_option, store_argument
from publisher.store import open_store


@click.command("check")
@store_argument
@click.option("--all", "has_all", is_flag=True, help="Read all revisions that gc has left, those with a tag too.")
@json_option
def command(store: str, has_all: bool, as_json: bool) -> None:
    """Read all of STORE's newest revision: is every page and pack there, and what its name says?

    What is lost or damaged: copy it from a mirror, or remove it and publish the same tree again, which stores it anew.

    \b
    Example:
      cvfs-publisher check /srv/software --all
    """
    from publisher.maintenance.check import check
    from publisher.publishing.threads import usable_cpus

    report = check(open_store(store), usable_cpus(), has_all=has_all)
    if as_json:
        terminal.print_json(msgspec.to_builtins(report))
    elif not report.errors:
        packs, size = show_count(report.packs, "pack"), show_size(report.bytes_checked)
        older = f" and {report.older} before" if has_all else ""
        click.echo(f"{report.repository}, revision {report.revision}{older}: {packs}, {size}, all right")
    for line in report.errors:
        click.echo(f"{PROGRAM}: error: {line}", err=True)
    if report.errors:
        raise click.exceptions.Exit(1)
