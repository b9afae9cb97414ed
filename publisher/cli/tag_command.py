"""cvfs-publisher tag."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cvfs import terminal
from publisher.cli.common import find_keys, json_option, keys_option, locked, now_s, store_argument
from publisher.store import DirectoryStore, open_store

if TYPE_CHECKING:
    from cvfs.format.tags import Tags
    from cvfs.model import Ancestor


@click.command("tag")
@store_argument
@click.argument("name", required=False)
@click.argument("revision", required=False)
@click.option("--delete", is_flag=True, help="Take the name away.")
@click.option("--move", is_flag=True, help="Give a name that another revision has to this one.")
@click.option("--list", "is_list", is_flag=True, help="Show all tags (also without NAME).")
@keys_option
@json_option
def command(
    store: str,
    name: str | None,
    revision: str | None,
    delete: bool,
    move: bool,
    is_list: bool,
    keys_dir: Path | None,
    as_json: bool,
) -> None:
    """Give the name NAME to REVISION of STORE, a number or a tag, or to the newest.

    Clients use it with `cvfs mount URL@NAME DIR`. Tags are signed; no new revision is made.

    \b
    Examples:
      cvfs-publisher tag /srv/software v1.0
      cvfs-publisher tag /srv/software stable 41 --move
      cvfs-publisher tag /srv/software production stable --move
      cvfs-publisher tag /srv/software v0.9 --delete
    """
    if is_list + delete + move > 1 or (is_list and name) or (delete and revision is not None):
        raise click.UsageError("use one of --list, --delete and --move; --list without NAME, --delete without REVISION")
    opened = open_store(store)
    if name is None:
        if delete or move:
            raise click.UsageError("Missing argument 'NAME'.")
        _show(_read(opened), as_json)
        return
    found = _change(opened, name, revision, delete, move, keys_dir)
    if as_json:
        terminal.print_json({"tag": name, "deleted": delete, **_json(found)})
    else:
        click.echo(f"Deleted {name}, which was revision {found.revision}" if delete else f"{name}: {_line(found)}")


def _change(
    store: DirectoryStore, name: str, revision: str | None, delete: bool, move: bool, keys_dir: Path | None
) -> "Ancestor":
    from publisher.repository.head import read_head
    from publisher.repository.tags import delete_tag, find_named, set_tag

    keys = find_keys(store, keys_dir)
    with locked(store):
        if delete:
            return delete_tag(store, keys, name, now_s())
        number = None if revision is None else find_named(store, read_head(store), revision).revision
        return set_tag(store, keys, name, number, now_s(), move=move)


def _read(store: DirectoryStore) -> "Tags":
    from publisher.repository.head import read_head
    from publisher.repository.tags import read_tags

    return read_tags(store, read_head(store))


def _show(tags: "Tags", as_json: bool) -> None:
    if as_json:
        terminal.print_json({"tags": {name: _json(each) for name, each in tags.items()}})
        return
    width = max(map(len, tags), default=0)
    for name, each in tags.items():
        click.echo(f"{name:<{width}}  {_line(each)}")


def _line(found: "Ancestor") -> str:
    return f"revision {found.revision}, of {datetime.fromtimestamp(found.published_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _json(found: "Ancestor") -> dict[str, object]:
    return {"revision": found.revision, "published_s": found.published_s, "manifest": found.manifest.id.hex()}
