"""cvfs-publisher resign."""

import time
from pathlib import Path

import click

from cvfs import terminal
from publisher.cli.common import find_keys, json_option, keys_option, locked, now_s, show_minute, store_argument, warn
from publisher.store import open_store

_WARN_DAYS = 60


@click.command("resign")
@store_argument
@click.option("--days", type=click.IntRange(1, 3650), help="For how long, from now on.  [default: as before]")
@keys_option
@json_option
def command(store: str, days: int | None, keys_dir: Path | None, as_json: bool) -> None:
    """Sign the timestamp of STORE again, so that clients know that it is not held back from them.

    Needs the timestamp key alone. Let a timer do it, several times in the days that a timestamp is valid.

    \b
    Example:
      cvfs-publisher resign /srv/software
    """
    from publisher.maintenance.key_changes import resign

    opened = open_store(store)
    keys = find_keys(opened, keys_dir)
    with locked(opened):
        renewed = resign(opened, keys, now_s(), days)
    if renewed.root_expires_s < time.time() + _WARN_DAYS * 86400:
        until = show_minute(renewed.root_expires_s)
        warn(f"the root is valid until {until} only: key renew-root")
    if as_json:
        terminal.print_json({"expires_s": renewed.expires_s, "root_expires_s": renewed.root_expires_s, "store": store})
    else:
        click.echo(f"Signed again, valid until {show_minute(renewed.expires_s)}")
