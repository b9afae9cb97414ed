"""cvfs-publisher rollback."""

from pathlib import Path

import click

from cvfs import terminal
from publisher.cli.common import (
    find_keys,
    json_option,
    keys_option,
    locked,
    now_s,
    state_option,
    store_argument,
    warn,
    warn_of_clock,
)
from publisher.cli.revision import find_manifest
from publisher.store import open_store


@click.command("rollback")
@store_argument
@click.argument("revision", metavar="REV")
@click.option("--message", "-m", default="", metavar="TEXT", help="Why, for the log.")
@state_option
@keys_option
@json_option
def command(store: str, revision: str, message: str, state: Path | None, keys_dir: Path | None, as_json: bool) -> None:
    """Make a new revision of STORE with the content of an earlier one, by number or tag.

    Nothing is undone or lost: clients get it as they get any new revision.

    \b
    Example:
      cvfs-publisher rollback /srv/software 41 -m 'the new compiler is broken'
    """
    from publisher.maintenance.rollback import rollback
    from publisher.repository.head import read_head
    from publisher.state.directory import state_directory

    opened = open_store(store)
    head = read_head(opened)
    warn_of_clock(head.manifest)
    number = find_manifest(opened, head, revision).revision
    keys, kept = find_keys(opened, keys_dir), state or state_directory(store, head.manifest.repository)
    with locked(opened):
        made = rollback(opened, keys, kept, number, message, now_s(), warn)
    newest = head.manifest.revision if made is None else made.revision
    if as_json:
        terminal.print_json({"published": made is not None, "revision": newest, "content_of": number})
    elif made is None:
        click.echo(f"Nothing to do: revision {newest} is equal to revision {number}")
    else:
        click.echo(f"Published revision {newest}, equal to revision {number}")
