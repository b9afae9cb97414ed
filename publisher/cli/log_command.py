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
    """List the revisions of STORE, newest first, with their tags; "gone" is what gc has removed.

    \b
    Example:
      cvfs-publisher log /srv/software
    """
    from publisher.repository.head import read_head
    from publisher.repository.history import revisions
    from publisher.repository.reachability import is_kept
    from publisher.repository.tags import read_tags

    opened = open_store(store)
    head = read_head(opened)
    tags: dict[int, list[str]] = {}
    for name, tagged in read_tags(opened, head).items():
        tags.setdefault(tagged.revision, []).append(name)
    found = ((one, tags.get(one.revision, []), is_kept(opened, one)) for one in revisions(opened, head.manifest))
    if as_json:
        listed = [_revision_json(*each) for each in found]
        terminal.print_json({"repository": head.manifest.repository, "revisions": listed})
        return
    for each in found:
        click.echo(_revision_line(*each))


def _revision_line(manifest: Manifest, tags: list[str], is_kept: bool) -> str:
    when = datetime.fromtimestamp(manifest.published_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    entries, size = show_count(manifest.summary.entries, "entry", "entries"), show_size(manifest.summary.size_bytes)
    marks = [] if is_kept else ["gone"]
    marked = f"  ({', '.join(tags + marks)})" if tags or marks else ""
    return f"{manifest.revision:6}  {when}  {entries}, {size}{marked}  {escape(manifest.message)}".rstrip()


def _revision_json(manifest: Manifest, tags: list[str], is_kept: bool) -> dict[str, object]:
    return {
        "gone": not is_kept,
        "tags": tags,
        "revision": manifest.revision,
        "published_s": manifest.published_s,
        "root": manifest.root.id.hex(),
        "entries": manifest.summary.entries,
        "bytes": manifest.summary.size_bytes,
        "message": manifest.message,
    }
