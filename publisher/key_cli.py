"""The commands that change what a store is signed with."""

import os
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cvfs import terminal
from publisher.store import DirectoryStore, open_store

if TYPE_CHECKING:
    from publisher.keys import Keys

Function = TypeVar("Function", bound=Callable[..., Any])
_WARN_DAYS = 60

_store = click.argument("store")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_protect = click.option("--passphrase", "is_protected", is_flag=True, help="Protect the new key by a passphrase.")


def keys_option(function: Function) -> Function:
    """--keys."""
    option = click.option(
        "--keys",
        "keys_dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where the private keys are ($CVFS_KEYS).",
    )
    return option(function)


def root_key_option(function: Function) -> Function:
    """--root-key."""
    option = click.option(
        "--root-key",
        "root_paths",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="PATH",
        help="A root key, if it is not with the others: on a medium that is kept elsewhere. Repeatable; "
        "those that are named are used instead of those with the others.",
    )
    return option(function)


def find_keys(store: DirectoryStore, directory: Path | None, root_paths: tuple[Path, ...] = ()) -> "Keys":
    """The keys for a store, with a prompt for passphrases where there is a terminal."""
    from publisher.head import read_head
    from publisher.keys import Keys, default_keys

    return Keys(directory or default_keys(read_head(store).manifest.repository), root_paths, ask_passphrase)


def ask_passphrase(what: str) -> str:
    """From the environment, or from whoever sits at the terminal; never echoed, never logged."""
    from publisher.keys import PASSPHRASE, ask_environment

    if os.environ.get(PASSPHRASE) or not sys.stdin.isatty():
        return ask_environment(what)
    text: str = click.prompt(f"Passphrase of {what}", hide_input=True, err=True)
    return text


def new_passphrase(is_wanted: bool) -> str | None:
    """A passphrase for keys that are about to be made, None if none is wanted."""
    from publisher.keys import PASSPHRASE, ask_environment

    if not is_wanted:
        return None
    if os.environ.get(PASSPHRASE) or not sys.stdin.isatty():
        return ask_environment("the new key")
    text: str = click.prompt("Passphrase for the new key", hide_input=True, confirmation_prompt=True, err=True)
    return text


def mount_command(root: bytes) -> str:
    """What a client types, with the address left open."""
    from cvfs.trust.values import root_id

    return f"cvfs mount --root-sha256 {root_id(root)} URL DIR"


@click.group("key")
def key_group() -> None:
    """Show and change the keys of a store."""


@key_group.command("list")
@_store
@keys_option
@root_key_option
@_json
def list_command(store: str, keys_dir: Path | None, root_paths: tuple[Path, ...], as_json: bool) -> None:
    """Show which keys sign STORE, which of them are here, and what clients need.

    \b
    Example:
      cvfs-publisher key list /srv/software
    """
    from publisher.key_report import describe

    opened = open_store(store)
    report = describe(opened, find_keys(opened, keys_dir, root_paths))
    if as_json:
        terminal.print_json(report.as_json())
        return
    click.echo(
        f"{report.repository}, version {report.root_version} of the root, valid until {_date(report.root_expires_s)}"
    )
    click.echo(f"timestamp valid until {_date(report.expires_s)}")
    for role in report.roles:
        click.echo(f"{role.name + ':':<11} {role.threshold} of {len(role.keys)} keys must sign")
        for key in role.keys:
            click.echo(f"  {key.id[:16]}  {key.place or 'not here'}")
    click.echo(f"root.json: {report.root_file or f'metadata/{report.root_version}.root.json'}")
    click.echo(f"SHA-256:   {report.root_sha256}")
    click.echo(f"mount:     cvfs mount --root-sha256 {report.root_sha256} URL DIR")


@key_group.command("rotate")
@_store
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

    \b
    Example:
      cvfs-publisher key rotate /srv/software timestamp --root-key /media/safe/root.pem
    """
    from publisher.key_changes import rotate

    opened = open_store(store)
    keys = find_keys(opened, keys_dir, root_paths)
    with locked(opened):
        _say_root(rotate(opened, keys, role, new_passphrase(is_protected), now_s()), keys)


@key_group.command("add-root")
@_store
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
    from publisher.key_changes import change_root_keys

    opened = open_store(store)
    keys = find_keys(opened, keys_dir, root_paths)
    with locked(opened):
        added = keys.add(path, new_passphrase(is_protected))
        root = change_root_keys(opened, keys, add_key=added, remove=None, threshold=threshold, now_s=now_s())
        _say_root(root, keys)


@key_group.command("remove-root")
@_store
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
    from publisher.key_changes import change_root_keys

    opened = open_store(store)
    keys = find_keys(opened, keys_dir, root_paths)
    with locked(opened):
        root = change_root_keys(opened, keys, add_key=None, remove=key_id, threshold=threshold, now_s=now_s())
        _say_root(root, keys)


@key_group.command("renew-root")
@_store
@keys_option
@root_key_option
def renew_root_command(store: str, keys_dir: Path | None, root_paths: tuple[Path, ...]) -> None:
    """Sign the root anew before it expires, with the same keys.

    \b
    Example:
      cvfs-publisher key renew-root /srv/software --root-key /media/safe/root.pem
    """
    from publisher.key_changes import change_root_keys

    opened = open_store(store)
    keys = find_keys(opened, keys_dir, root_paths)
    with locked(opened):
        root = change_root_keys(opened, keys, add_key=None, remove=None, threshold=None, now_s=now_s())
        _say_root(root, keys)


@click.command("resign")
@_store
@click.option("--days", type=click.IntRange(1, 3650), help="For how long, from now on.  [default: as before]")
@keys_option
@_json
def resign_command(store: str, days: int | None, keys_dir: Path | None, as_json: bool) -> None:
    """Sign the timestamp of STORE again, so that clients know that it is not held back from them.

    Needs the timestamp key alone. Let a timer do it, several times in the days that a timestamp is valid.

    \b
    Example:
      cvfs-publisher resign /srv/software
    """
    from publisher.key_changes import resign

    opened = open_store(store)
    keys = find_keys(opened, keys_dir)
    with locked(opened):
        renewed = resign(opened, keys, now_s(), days)
    if renewed.root_expires_s < time.time() + _WARN_DAYS * 86400:
        until = _date(renewed.root_expires_s)
        warn(f"the root is valid until {until} only: key renew-root")
    if as_json:
        terminal.print_json({"expires_s": renewed.expires_s, "root_expires_s": renewed.root_expires_s, "store": store})
    else:
        click.echo(f"Signed again, valid until {_date(renewed.expires_s)}")


def now_s() -> int:
    """The time of signing, from which on a signature is valid."""
    return int(time.time())


def made_s() -> int:
    """When what is made says that it was made. SOURCE_DATE_EPOCH sets it: then the same tree gives the same bytes."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(fixed) if fixed.isascii() and fixed.isdecimal() else now_s()


def warn(text: str) -> None:
    """Of what does not make a command fail."""
    click.echo(f"cvfs-publisher: warning: {' '.join(text.split())}", err=True)


def locked(store: DirectoryStore) -> AbstractContextManager[None]:
    """Be the only publisher at work on `store`."""
    return store.lock(lambda: terminal.console.print("Another publisher is at work on this store; waiting for it"))


def _say_root(root: bytes, keys: "Keys") -> None:
    click.echo(f"New root: {shlex.quote(str(keys.directory / 'root.json'))}; clients that have an older one follow it")


def _date(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time_s))
