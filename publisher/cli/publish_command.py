"""cvfs-publisher publish."""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cvfs import terminal
from publisher.cli.common import (
    check_apart,
    find_keys,
    json_option,
    keys_option,
    made_s,
    not_empty,
    now_s,
    store_argument,
    warn,
    warn_of_clock,
)
from publisher.store import open_store

if TYPE_CHECKING:
    from publisher.publishing.options import Watch


@click.command("publish")
@store_argument
@click.argument("tree", callback=not_empty)
@click.option("--at", default="", metavar="PATH", callback=not_empty, help="Replace only this path of the repository.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out, as in a .gitignore. Repeatable.")
@click.option("--message", "-m", default="", metavar="TEXT", help="What is new, for the log.")
@click.option("--level", default=3, type=click.IntRange(1, 19), show_default=True, help="Of zstd's compression.")
@click.option("--workers", type=click.IntRange(1, 256), help="Threads.  [default: one for each processor]")
@click.option("--state", type=click.Path(path_type=Path), metavar="DIR", help="Where to remember what was published.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="If another publisher is at work.")
@click.option("--dry-run", is_flag=True, help="Change nothing, only tell what would be done. Needs no keys.")
@click.option("--accept-rollback", is_flag=True, help="Go on from an older revision than was published here before.")
@keys_option
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@json_option
def command(
    store: str,
    tree: str,
    at: str,
    exclude: tuple[str, ...],
    message: str,
    level: int,
    workers: int | None,
    state: Path | None,
    wait: bool,
    dry_run: bool,
    accept_rollback: bool,
    keys_dir: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make a new revision of STORE that is equal to the directory TREE.

    A file that looks as it did when it was last published is not read again. If nothing has changed, there is no new
    revision. Owners, modes, times, hard links and extended attributes are kept: user.*, security.capability, and, where
    root publishes, trusted.* (but not trusted.overlay.*). Others are left out.

    \b
    Examples:
      cvfs-publisher publish /srv/software /opt/software
      cvfs-publisher publish /srv/software build/ --at tools/gcc/14.2 --exclude '*.o'
    """
    from publisher.cli.publish_summary import summary
    from publisher.publishing.options import Options
    from publisher.publishing.publish import publish
    from publisher.publishing.threads import usable_cpus
    from publisher.repository.head import read_head
    from publisher.repository.subtree import parse_path
    from publisher.signing.keys import default_keys
    from publisher.source.exclusion import exclusion
    from publisher.state.directory import state_directory

    opened = open_store(store)
    excluded, threads = exclusion(exclude), workers or usable_cpus()
    options = Options(parse_path(at), level, message, dry_run, accept_rollback, excluded, threads, made_s())
    newest = read_head(opened).manifest
    warn_of_clock(newest)
    repository = newest.repository
    kept = state or state_directory(store, repository)
    check_apart(tree, {"store": opened.path, "state directory": kept})
    keys = None if dry_run else find_keys(opened, keys_dir or default_keys(repository))
    if keys is not None:
        check_apart(tree, {"key directory": keys.directory})
        keys.unlock()
    waiting, warnings = _say_waiting if wait else None, list[str]()
    with opened.lock(waiting, to_write=not dry_run), _watching(not quiet and not as_json) as watch:
        watch = watch._replace(warn=warnings.append, wait=waiting)
        report = publish(opened, tree, kept, options, now_s(), watch, keys)
    for each in warnings:
        warn(each)
    if as_json:
        terminal.print_json(report.as_json())
    elif not quiet:
        click.echo(summary(report))


def _watching(is_wanted: bool) -> "AbstractContextManager[Watch]":
    """What shows progress, if stderr is a terminal."""
    from publisher.publishing.options import SILENT

    if not is_wanted or not sys.stderr.isatty():
        return nullcontext(SILENT)
    from publisher.cli.publish_progress import watching  # rich takes longer to import than a small tree to publish

    return watching()


def _say_waiting() -> None:
    terminal.console.print("Another publisher is at work here; waiting for it (--no-wait: do not)")
