"""cvfs-publisher remove."""

from pathlib import Path

import click

from cvfs import terminal
from cvfs.terminal import show_count
from publisher.cli.common import (
    find_keys,
    json_option,
    keys_option,
    locked,
    made_s,
    now_s,
    state_option,
    store_argument,
    warn,
    warn_of_clock,
)
from publisher.store import open_store


@click.command("remove")
@store_argument
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--message", "-m", default="", metavar="TEXT", help="Why, for the log.")
@state_option
@keys_option
@json_option
def command(
    store: str, paths: tuple[str, ...], message: str, state: Path | None, keys_dir: Path | None, as_json: bool
) -> None:
    """Make a new revision of STORE without PATH..., files or directories with all that is in them.

    Earlier revisions still have them; their space is free when `gc` has removed these.

    \b
    Example:
      cvfs-publisher remove /srv/software tools/gcc/12.1 tools/gcc/12.2 -m 'end of life'
    """
    from publisher.maintenance.remove import remove
    from publisher.repository.head import read_head
    from publisher.repository.subtree import parse_path
    from publisher.state.directory import state_directory

    wanted = [parse_path(path) for path in paths]
    opened = open_store(store)
    newest = read_head(opened).manifest
    warn_of_clock(newest)
    keys, kept = find_keys(opened, keys_dir), state or state_directory(store, newest.repository)
    with locked(opened):
        made = remove(opened, keys, kept, wanted, message, now_s(), made_s(), warn)
    if as_json:
        terminal.print_json({"revision": made.revision, "entries": made.summary.entries})
    else:
        left = show_count(made.summary.entries, "entry is", "entries are")
        click.echo(f"Published revision {made.revision} of {made.repository}; {left} left")
