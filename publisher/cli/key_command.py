"""cvfs-publisher key."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cvfs import terminal
from publisher.cli.common import (
    find_keys,
    json_option,
    keys_option,
    locked,
    now_s,
    root_key_option,
    show_minute,
    show_mount,
    store_argument,
)
from publisher.cli.passphrase import new_passphrase
from publisher.store import open_store

if TYPE_CHECKING:
    from publisher.signing.keys import Keys

_protect = click.option("--passphrase", "is_protected", is_flag=True, help="Protect the new key by a passphrase.")


@click.group("key")
def command() -> None:
    """Show and change the keys of a store."""


@command.command("list")
@store_argument
@keys_option
@root_key_option
@json_option
def list_command(store: str, keys_dir: Path | None, root_paths: tuple[Path, ...], as_json: bool) -> None:
    """Show which keys sign STORE, which of them are here, and what clients need.

    \b
    Example:
      cvfs-publisher key list /srv/software
    """
    from publisher.maintenance.key_report import describe

    opened = open_store(store)
    report = describe(opened, find_keys(opened, keys_dir, root_paths))
    if as_json:
        terminal.print_json(report.as_json())
        return
    until = show_minute(report.root_expires_s)
    click.echo(f"{report.repository}, version {report.root_version} of the root, valid until {until}")
    click.echo(f"timestamp valid until {show_minute(report.expires_s)}")
    for role in report.roles:
        click.echo(f"{role.name + ':':<11} {role.threshold} of {len(role.keys)} keys must sign")
        for key in role.keys:
            click.echo(f"  {key.id[:16]}  {key.place or 'not here'}")
    click.echo(f"root.json: {report.root_file or f'metadata/{report.root_version}.root.json'}")
    click.echo(f"SHA-256:   {report.root_sha256}")
    click.echo(f"mount:     {show_mount(report.root_sha256)}")


@command.command("rotate")
@store_argument
@click.argument("role", type=click.Choice(["root", "targets", "snapshot", "timestamp"]))
@keys_option
@root_key_option
@_protect
def rotate_command(
    store: str, role: str, keys_dir: Path | None, root_paths: tuple[Path, ...], is_protected: bool
) -> None:
    """Replace the key of ROLE by a new one. Needs the root key.

    Clients follow by themselves. After a theft of the snapshot or the timestamp key, rotate both: that also undoes
    whatever version numbers the thief has made clients believe. Of several root keys, the first one here is replaced.
    The new key is protected by a passphrase if the old one is.

    \b
    Example:
      cvfs-publisher key rotate /srv/software timestamp --root-key /media/safe/root.pem
    """
    from publisher.maintenance.key_changes import rotate

    opened = open_store(store)
    keys = find_keys(opened, keys_dir, root_paths)
    with locked(opened):
        passphrase = new_passphrase(is_protected or keys.is_protected(role))
        _say_root(rotate(opened, keys, role, passphrase, now_s()), keys)


@command.command("add-root")
@store_argument
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--threshold", type=click.IntRange(min=1), help="How many root keys must sign from now on.")
@keys_option
@root_key_option
@_protect
def add_root_command(
    store: str,
    path: Path,
    threshold: int | None,
    keys_dir: Path | None,
    root_paths: tuple[Path, ...],
    is_protected: bool,
) -> None:
    """Trust the root key in PATH too; it is made if there is none.

    \b
    Example:
      cvfs-publisher key add-root /srv/software /media/second/root.pem --threshold 2
    """
    from publisher.maintenance.key_changes import change_root_keys

    opened = open_store(store)
    keys = find_keys(opened, keys_dir, root_paths)
    with locked(opened):
        added = keys.add(path, new_passphrase(is_protected))
        root = change_root_keys(opened, keys, add_key=added, remove=None, threshold=threshold, now_s=now_s())
        _say_root(root, keys)


@command.command("remove-root")
@store_argument
@click.argument("key_id")
@click.option("--threshold", type=click.IntRange(min=1), help="How many root keys must sign from now on.")
@keys_option
@root_key_option
def remove_root_command(
    store: str, key_id: str, threshold: int | None, keys_dir: Path | None, root_paths: tuple[Path, ...]
) -> None:
    """Trust the root key whose id begins with KEY_ID no more. The key itself is not needed, nor deleted.

    \b
    Example:
      cvfs-publisher key remove-root /srv/software 3c1f9ab20d44e1f7
    """
    from publisher.maintenance.key_changes import change_root_keys

    opened = open_store(store)
    keys = find_keys(opened, keys_dir, root_paths)
    with locked(opened):
        root = change_root_keys(opened, keys, add_key=None, remove=key_id, threshold=threshold, now_s=now_s())
        _say_root(root, keys)


@command.command("renew-root")
@store_argument
@keys_option
@root_key_option
def renew_root_command(store: str, keys_dir: Path | None, root_paths: tuple[Path, ...]) -> None:
    """Sign the root anew before it expires, with the same keys.

    \b
    Example:
      cvfs-publisher key renew-root /srv/software --root-key /media/safe/root.pem
    """
    from publisher.maintenance.key_changes import change_root_keys

    opened = open_store(store)
    keys = find_keys(opened, keys_dir, root_paths)
    with locked(opened):
        root = change_root_keys(opened, keys, add_key=None, remove=None, threshold=None, now_s=now_s())
        _say_root(root, keys)


def _say_root(root: bytes, keys: "Keys") -> None:
    click.echo(f"New root: {shlex.quote(str(keys.directory / 'root.json'))}; clients that have an older one follow it")
