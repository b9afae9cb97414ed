"""cvfs-publisher diff."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cvfs import terminal
from cvfs.terminal import escape
from publisher.cli.common import json_option, store_argument
from publisher.cli.revision import find_manifest
from publisher.store import open_store

if TYPE_CHECKING:
    from publisher.repository.difference import Difference

_LETTERS = {"added": "A", "removed": "D", "changed": "M", "touched": "T"}


@click.command("diff")
@store_argument
@click.argument("older", metavar="REV1")
@click.argument("newer", metavar="[REV2]", required=False)
@json_option
def command(store: str, older: str, newer: str | None, as_json: bool) -> None:
    """Say what differs between two revisions of STORE, by number or tag; REV2 is the newest unless given.

    A line for each path: A added, D removed, M changed, T touched (only mode, owner, time or attributes differ). In
    it, special characters and backslashes are written as in Python; --json gives paths as they are, a byte that is not
    UTF-8 as one of U+DC80 to U+DCFF.

    \b
    Examples:
      cvfs-publisher diff /srv/software 41
      cvfs-publisher diff /srv/software v1.0 v1.1 --json
    """
    from publisher.repository.difference import differences
    from publisher.repository.head import read_head
    from publisher.repository.reachability import check_kept

    opened = open_store(store)
    head = read_head(opened)
    first, second = (
        find_manifest(opened, head, older),
        find_manifest(opened, head, newer) if newer is not None else head.manifest,
    )
    for each in (first, second):
        check_kept(opened, each)
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
