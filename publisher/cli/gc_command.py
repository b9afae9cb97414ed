"""cvfs-publisher gc."""

import math
from pathlib import Path

import click
import msgspec

from cvfs import terminal
from cvfs.terminal import show_count, show_size
from publisher.cli.common import find_keys, json_option, keys_option, locked, now_s, state_option, store_argument
from publisher.store import open_store


def _number(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if math.isnan(value):  # which is in every range
        raise click.BadParameter("not a number", context, parameter)
    return value


@click.command("gc")
@store_argument
@click.option("--keep", required=True, type=click.IntRange(min=1), metavar="N", help="Keep the newest N revisions.")
@click.option(
    "--grace",
    "grace_hours",
    default=24.0,
    type=click.FloatRange(0, 1e6),
    callback=_number,
    show_default=True,
    metavar="HOURS",
    help="Keep what was the newest revision so recently, for clients that use it.",
)
@click.option("--dry-run", is_flag=True, help="Remove nothing, only tell what would be.")
@state_option
@keys_option
@json_option
def command(
    store: str, keep: int, grace_hours: float, dry_run: bool, state: Path | None, keys_dir: Path | None, as_json: bool
) -> None:
    """Remove from STORE what no revision that is kept needs. Revisions with a tag are kept, however old.

    Other publishers wait meanwhile. A client that still has an older revision mounted cannot read what it has not
    read before, until it follows to a newer one.

    \b
    Examples:
      cvfs-publisher gc /srv/software --keep 10 --dry-run
      cvfs-publisher gc /srv/software --keep 10
    """
    from publisher.maintenance.garbage_collection import Policy, collect
    from publisher.repository.head import read_head
    from publisher.state.directory import state_directory

    opened = open_store(store)
    keys, kept = find_keys(opened, keys_dir), state or state_directory(store, read_head(opened).manifest.repository)
    with locked(opened, to_write=not dry_run):
        policy = Policy(keep, int(grace_hours * 3600))
        done = collect(opened, keys, kept, policy, now_s(), is_dry_run=dry_run)
    if as_json:
        terminal.print_json(msgspec.to_builtins(done))
        return
    verb = "Would remove" if dry_run else "Removed"
    click.echo(f"{verb} {show_count(done.removed_blobs, 'blob')}, {show_size(done.removed_bytes)}")
    revisions, blobs = show_count(len(done.kept), "revision"), show_count(done.kept_blobs, "blob")
    click.echo(f"Kept {revisions} of {done.repository}: {blobs}, {show_size(done.kept_bytes)}")
