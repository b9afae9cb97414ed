"""The commands that look at revisions, go back to one, and let old ones go."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cvfs import terminal
from cvfs.errors import StoreError
from cvfs.terminal import escape, show_count, show_size
from publisher.key_cli import find_keys, keys_option, locked, now_s, warn
from publisher.settings import state_directory
from publisher.store import DirectoryStore, open_store

if TYPE_CHECKING:
    from cvfs.model import Manifest
    from publisher.difference import Difference
    from publisher.head import Head

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_state = click.option(
    "--state", type=click.Path(path_type=Path), metavar="DIR", help="Where is remembered what was published."
)
_LETTERS = {"added": "A", "removed": "D", "changed": "M", "touched": "T"}


@click.command("diff")
@click.argument("store")
@click.argument("older", metavar="REV1")
@click.argument("newer", metavar="[REV2]", required=False)
@_json
def diff_command(store: str, older: str, newer: str | None, as_json: bool) -> None:
    """Say what differs between two revisions of STORE, by number or tag; REV2 is the newest unless given.

    A line for each path: A added, D removed, M changed, T touched (only mode, owner, time or attributes differ). In
    it, special characters and backslashes are written as in Python; --json gives paths as they are, a byte that is not
    UTF-8 as one of U+DC80 to U+DCFF.

    \b
    Examples:
      cvfs-publisher diff /srv/software 41
      cvfs-publisher diff /srv/software v1.0 v1.1 --json
    """
    from publisher.difference import differences
    from publisher.head import read_head

    opened = open_store(store)
    head = read_head(opened)
    first, second = _find(opened, head, older), _find(opened, head, newer) if newer is not None else head.manifest
    found = differences(opened, first, second)
    if as_json:
        paths = [{"path": os.fsdecode(each.path), "kind": each.kind} for each in found]
        numbers = {"older": first.revision, "newer": second.revision}
        terminal.print_json({"repository": head.manifest.repository, **numbers, "differences": paths})
        return
    for line in _lines(found):
        click.echo(line)


def _lines(found: "Iterator[Difference]") -> Iterator[str]:
    for each in found:
        yield f"{_LETTERS[each.kind]} /{escape(os.fsdecode(each.path))}"


@click.command("rollback")
@click.argument("store")
@click.argument("revision", metavar="REV")
@click.option("--message", "-m", default="", metavar="TEXT", help="Why, for the log.")
@_state
@keys_option
@_json
def rollback_command(
    store: str, revision: str, message: str, state: Path | None, keys_dir: Path | None, as_json: bool
) -> None:
    """Make a new revision of STORE with the content of an earlier one, by number or tag.

    Nothing is undone or lost: clients get it as they get any new revision.

    \b
    Example:
      cvfs-publisher rollback /srv/software 41 -m 'the new compiler is broken'
    """
    from publisher.head import read_head
    from publisher.rollback import rollback

    opened = open_store(store)
    head = read_head(opened)
    number = _find(opened, head, revision).revision
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


@click.command("gc")
@click.argument("store")
@click.option("--keep", required=True, type=click.IntRange(min=1), metavar="N", help="Keep the newest N revisions.")
@click.option(
    "--grace",
    "grace_hours",
    default=24.0,
    type=click.FloatRange(min=0),
    show_default=True,
    metavar="HOURS",
    help="Keep what was the newest revision so recently, for clients that use it.",
)
@click.option("--dry-run", is_flag=True, help="Remove nothing, only tell what would be.")
@_state
@keys_option
@_json
def gc_command(
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
    from publisher.collect import Policy, collect
    from publisher.head import read_head

    opened = open_store(store)
    keys, kept = find_keys(opened, keys_dir), state or state_directory(store, read_head(opened).manifest.repository)
    with locked(opened):
        policy = Policy(keep, int(grace_hours * 3600))
        done = collect(opened, keys, kept, policy, now_s(), is_dry_run=dry_run)
    if as_json:
        terminal.print_json(msgspec.to_builtins(done))
        return
    verb = "Would remove" if dry_run else "Removed"
    click.echo(f"{verb} {show_count(done.removed_blobs, 'blob')}, {show_size(done.removed_bytes)}")
    revisions, blobs = show_count(len(done.kept), "revision"), show_count(done.kept_blobs, "blob")
    click.echo(f"Kept {revisions} of {done.repository}: {blobs}, {show_size(done.kept_bytes)}")


def _find(store: DirectoryStore, head: "Head", text: str) -> "Manifest":
    """The revision that a number or a tag means. Raises StoreError: there is none."""
    from publisher.history import find_revision, read_manifest
    from publisher.tags import read_tags

    if text.isascii() and text.isdigit():
        return read_manifest(store, find_revision(store, head.manifest, head.blob, int(text)).manifest)
    found = read_tags(store, head).get(text)
    if found is None:
        raise StoreError(f"{head.manifest.repository} has no revision or tag {text!r}")
    return read_manifest(store, found.manifest)
