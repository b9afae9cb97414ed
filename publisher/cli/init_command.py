"""cvfs-publisher init."""

from pathlib import Path

import click

from cvfs import terminal
from cvfs.errors import ConfigError
from publisher.cli.common import (
    check_apart,
    json_option,
    keys_option,
    made_s,
    now_s,
    root_key_option,
    show_mount,
    store_argument,
)
from publisher.cli.passphrase import ask_passphrase, new_passphrase


@click.command("init")
@store_argument
@click.option("--name", required=True, help="Name of the repository, like a host name: software.example.org")
@keys_option
@root_key_option
@click.option(
    "--root-threshold", default=1, type=click.IntRange(min=1), show_default=True, help="Root keys that must sign."
)
@click.option("--timestamp-days", default=7, type=click.IntRange(1, 3650), show_default=True, help="See `resign`.")
@click.option("--passphrase", "is_protected", is_flag=True, help="Protect all new keys but the timestamp's by one.")
@json_option
def command(
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
    from publisher.repository.create import Security, create
    from publisher.signing.keys import ROOT_FILE, Keys, default_keys

    keys = Keys(keys_dir or default_keys(name), root_paths, ask_passphrase)
    places = {"key directory": keys.directory} | {f"root key {path.name}": path for path in root_paths}
    check_apart(store, places, "store")
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
    click.echo(f"Mount: {show_mount(sha256)}")


def _date_of_first(timestamp_days: int) -> int:
    """The date of a new store's signatures too, so that two may be equal to the last byte."""
    date_s = made_s()
    if date_s + timestamp_days * 86400 <= now_s():
        raise ConfigError(
            f"SOURCE_DATE_EPOCH is too long ago: what was signed then for {timestamp_days} days has expired. Unset it"
        )
    return date_s
