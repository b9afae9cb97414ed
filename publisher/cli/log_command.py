"""cvfs-publisher log."""

from datetime import UTC, datetime

import click

from cvfs import terminal
from cvfs.model import Manifest
from cvfs.terminal import escape, show_count, show_size
from publisher.cli.common import json_option, store_argument
from publisher.store import open_store


@click.command("log")
@store_argument
@json_option
def command(store: str, as_json: bool) -> None:
    """List the revisions of STORE, newest first.

    \b
    Example:
      cvfs-publisher log /srv/software
    """
    from publisher.repository.head import read_head
    from publisher.repository.history import revisions

    opened = open_store(store)
    head = read_head(opened).manifest
    found = revisions(opened, head)
    if as_json:
        terminal.print_json({"repository": head.repository, "revisions": [_revision_json(one) for one in found]})
        return
    for one in found:
        when = datetime.fromtimestamp(one.published_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
        entries, size = show_count(one.summary.entries, "entry", "entries"), show_size(one.summary.size_bytes)
        click.echo(f"{one.revision:6}  {when}  {entries}, {size}  {escape(one.message)}".rstrip())


def _revision_json(manifest: Manifest) -> dict[str, object]:
    return {
        "revision": manifest.revision,
        "published_s": manifest.published_s,
        "root": manifest.root.id.hex(),
        "entries": manifest.summary.entries,
        "bytes": manifest.summary.size_bytes,
        "message": manifest.message,
    }
