"""The command line of the publisher."""

import gc
import sys
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
import msgspec

from cvfs import __version__, terminal
from cvfs.errors import ConfigError
from cvfs.model import Manifest
from cvfs.streams import complete_streams
from cvfs.terminal import escape, show_count, show_size
from publisher.graft import parse_path
from publisher.history_cli import diff_command, gc_command, rollback_command
from publisher.key_cli import (
    ask_passphrase,
    find_keys,
    key_group,
    keys_option,
    made_s,
    mount_command,
    new_passphrase,
    now_s,
    resign_command,
    root_key_option,
    warn,
)
from publisher.settings import check_apart, exclusion, state_directory
from publisher.store import open_store
from publisher.tag_cli import tag_command

if TYPE_CHECKING:
    from publisher.publish import Watch

_PROGRAM = "cvfs-publisher"

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=_PROGRAM)
def cli() -> None:
    """Publish directory trees as repositories that cvfs mounts."""


cli.add_command(key_group)
cli.add_command(resign_command)
cli.add_command(tag_command)
cli.add_command(diff_command)
cli.add_command(rollback_command)
cli.add_command(gc_command)


@cli.command("init")
@click.argument("store")
@click.option("--name", required=True, help="Name of the repository, like a host name: software.example.org")
@keys_option
@root_key_option
@click.option(
    "--root-threshold", default=1, type=click.IntRange(min=1), show_default=True, help="Root keys that must sign."
)
@click.option("--timestamp-days", default=7, type=click.IntRange(1, 3650), show_default=True, help="See `resign`.")
@click.option("--passphrase", "is_protected", is_flag=True, help="Protect all new keys but the timestamp's by one.")
@_json
def init_command(
    store: str,
    name: str,
    keys_dir: Path | None,
    root_paths: tuple[Path, ...],
    root_threshold: int,
    timestamp_days: int,
    is_protected: bool,
    as_json: bool,
) -> None:
    """Make STORE, a new or empty directory, the store of an empty repository, and the keys that sign it.

    The keys are put outside of the store, in files that only you can read. Those that are there already are used.
    Keep the root key where no network leads; it is needed only to change keys.

    \b
    Examples:
      cvfs-publisher init /srv/software --name software.example.org
      cvfs-publisher init /srv/software --name software.example.org --root-key /media/safe/root.pem --passphrase
    """
    from cvfs.trust.values import root_id
    from publisher.create import Security, create
    from publisher.keys import ROOT_FILE, Keys, default_keys

    keys = Keys(keys_dir or default_keys(name), root_paths, ask_passphrase)
    check_apart(store, {"key directory": keys.directory} | {f"root key {path.name}": path for path in root_paths})
    security = Security(root_threshold, timestamp_days, passphrase=new_passphrase(is_protected))
    create(store, name, _date_of_first(timestamp_days), keys, security)
    root = keys.known_root() or b""
    root_file, sha256 = str(keys.directory / ROOT_FILE), root_id(root)
    if as_json:
        fields = {"keys": str(keys.directory), "root": root_file, "root_sha256": sha256}
        terminal.print_json({"repository": name, "revision": 0, "store": store, **fields})
        return
    click.echo(f"Made {store}: repository {name}, revision 0, empty")
    click.echo(f"Keys:  {keys.directory} (take {', '.join(map(str, keys.candidates('root')))} offline)")
    click.echo(f"Root:  {root_file}, SHA-256 {sha256}")
    click.echo(f"Mount: {mount_command(root)}")


def _date_of_first(timestamp_days: int) -> int:
    """The date of a new store's signatures too, so that two may be equal to the last byte."""
    date_s = made_s()
    if date_s + timestamp_days * 86400 <= now_s():
        raise ConfigError(
            f"SOURCE_DATE_EPOCH is too long ago: what was signed then for {timestamp_days} days has expired. Unset it"
        )
    return date_s


def _not_empty(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """An empty text is a variable that is not set: it would mean the current directory, or the whole repository."""
    assert parameter.name is not None
    is_given = context.get_parameter_source(parameter.name) is not click.core.ParameterSource.DEFAULT
    if is_given and not value:
        raise click.BadParameter("it is empty", context, parameter)
    return value


@cli.command("publish")
@click.argument("store", callback=_not_empty)
@click.argument("tree", callback=_not_empty)
@click.option("--at", default="", metavar="PATH", callback=_not_empty, help="Replace only this path of the repository.")
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
@_json
def publish_command(
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
    from publisher.head import read_head
    from publisher.keys import default_keys
    from publisher.publish import Options, publish
    from publisher.summary import summary
    from publisher.threads import usable_cpus

    opened = open_store(store)
    excluded, threads = exclusion(exclude), workers or usable_cpus()
    options = Options(parse_path(at), level, message, dry_run, accept_rollback, excluded, threads, made_s())
    repository = read_head(opened).manifest.repository
    kept = state or state_directory(store, repository)
    check_apart(tree, {"store": opened.path, "state directory": kept})
    keys = None if dry_run else find_keys(opened, keys_dir or default_keys(repository))
    if keys is not None:
        check_apart(tree, {"key directory": keys.directory})
        keys.unlock()
    waiting, warnings = _say_waiting if wait else None, list[str]()
    with opened.lock(waiting), _watching(not quiet and not as_json) as watch:
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
    from publisher.publish import SILENT

    if not is_wanted or not sys.stderr.isatty():
        return nullcontext(SILENT)
    from publisher.progress import watching  # rich takes longer to import than a small tree to publish

    return watching()


def _say_waiting() -> None:
    terminal.console.print("Another publisher is at work here; waiting for it (--no-wait: do not)")


@cli.command("serve")
@click.argument("store")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, type=click.IntRange(0, 65535), show_default=True, help="0: any free one.")
@click.option("--log", "is_logging", is_flag=True, help="A line on stderr for each request.")
def serve_command(store: str, host: str, port: int, is_logging: bool) -> None:
    """Serve STORE over HTTP until interrupted. In production any web server will do.

    \b
    Example:
      cvfs-publisher serve /srv/software --port 8080
    """
    from publisher.serve import serve

    log = (lambda line: click.echo(line, err=True)) if is_logging else None
    serve(store, host, port, log=log, announce=click.echo)


@cli.command("log")
@click.argument("store")
@_json
def log_command(store: str, as_json: bool) -> None:
    """List the revisions of STORE, newest first.

    \b
    Example:
      cvfs-publisher log /srv/software
    """
    from publisher.head import read_head
    from publisher.history import revisions

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


@cli.command("check")
@click.argument("store")
@_json
def check_command(store: str, as_json: bool) -> None:
    """Read all of STORE's newest revision: is every page and pack there, and what its name says?

    What is lost or damaged: copy it from a mirror, or remove it and publish the same tree again, which stores it anew.

    \b
    Example:
      cvfs-publisher check /srv/software
    """
    from publisher.check import check
    from publisher.threads import usable_cpus

    report = check(open_store(store), usable_cpus())
    if as_json:
        terminal.print_json(msgspec.to_builtins(report))
    elif not report.errors:
        packs, size = show_count(report.packs, "pack"), show_size(report.bytes_checked)
        click.echo(f"{report.repository}, revision {report.revision}: {packs}, {size}, all right")
    for line in report.errors:
        click.echo(f"{_PROGRAM}: error: {line}", err=True)
    if report.errors:
        raise click.exceptions.Exit(1)


def _revision_json(manifest: Manifest) -> dict[str, object]:
    return {
        "revision": manifest.revision,
        "published_s": manifest.published_s,
        "root": manifest.root.id.hex(),
        "entries": manifest.summary.entries,
        "bytes": manifest.summary.size_bytes,
        "message": manifest.message,
    }


def main() -> NoReturn:
    """The entry point of the command."""
    complete_streams()
    try:
        terminal.run(cli, _PROGRAM)
    finally:
        gc.freeze()  # The interpreter would look for cycles in all that is loaded, 12 ms, to free it a moment later.
