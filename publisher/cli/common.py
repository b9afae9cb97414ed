"""What the commands share: options, the keys and the lock of a store, the time, warnings."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cvfs import terminal
from cvfs.errors import ConfigError
from publisher.cli.passphrase import ask_passphrase
from publisher.store import DirectoryStore

if TYPE_CHECKING:
    from cvfs.model import Manifest
    from publisher.signing.keys import Keys

Function = TypeVar("Function", bound=Callable[..., Any])

PROGRAM = "cvfs-publisher"

_CLOCKS_DIFFER_S = 86400
"""How far the clock of another host may be ahead, whose commit is published here. A guess."""

_MAX_DIGITS = 20
"""Of a time: more than any has, and few enough for Python, which takes no number of thousands."""


def not_empty(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """An empty text is a variable that is not set: it would mean the current directory, or the whole repository."""
    assert parameter.name is not None
    is_given = context.get_parameter_source(parameter.name) is not click.core.ParameterSource.DEFAULT
    if is_given and not value:
        raise click.BadParameter("it is empty", context, parameter)
    return value


store_argument = click.argument("store", callback=not_empty)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
state_option = click.option(
    "--state", type=click.Path(path_type=Path), metavar="DIR", help="Where is remembered what was published."
)
keys_option = click.option(
    "--keys",
    "keys_dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the private keys are ($CVFS_KEYS).",
)
root_key_option = click.option(
    "--root-key",
    "root_paths",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="A root key, if it is not with the others: on a medium that is kept elsewhere. Repeatable; "
    "those that are named are used instead of those with the others.",
)


def find_keys(store: DirectoryStore, directory: Path | None, root_paths: tuple[Path, ...] = ()) -> "Keys":
    """The keys for a store, with a prompt for passphrases where there is a terminal."""
    from publisher.repository.head import read_head
    from publisher.signing.keys import Keys, default_keys

    return Keys(directory or default_keys(read_head(store).manifest.repository), root_paths, ask_passphrase)


def locked(store: DirectoryStore, *, to_write: bool = True) -> AbstractContextManager[None]:
    """Be the only publisher at work on `store`."""
    waiting = "Another publisher is at work on this store; waiting for it"
    return store.lock(lambda: terminal.console.print(waiting), to_write=to_write)


def check_apart(tree: str, places: dict[str, Path], outer: str = "tree") -> None:
    """Raise ConfigError if one of `places`, by what it is called, is in `tree`, which is called `outer`: a tree must
    not change while it is published, and whoever reads a store must not find keys."""
    top = Path(os.path.realpath(tree))
    for what, place in places.items():
        if Path(os.path.realpath(place)).is_relative_to(top):
            raise ConfigError(f"the {what} {place} is inside the {outer} {tree}")


def now_s() -> int:
    """The time of signing, from which on a signature is valid."""
    return int(time.time())


def made_s() -> int:
    """When what is made says that it was made. SOURCE_DATE_EPOCH sets it: then the same tree gives the same bytes.

    Raises ConfigError: it sets no time, or one to come, and no later revision could be older.
    """
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not fixed:
        return now_s()
    if not (fixed.isascii() and fixed.isdecimal()) or len(fixed) > _MAX_DIGITS:
        raise ConfigError(f"SOURCE_DATE_EPOCH is not a number of seconds since 1970: {fixed[:40]!r}")
    if int(fixed) > now_s() + _CLOCKS_DIFFER_S:
        raise ConfigError("SOURCE_DATE_EPOCH is a time to come; or the clock of this host is wrong")
    return int(fixed)


def show_minute(time_s: float) -> str:
    """A time for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time_s))


def show_mount(root_sha256: str) -> str:
    """What a client types, with the address left open."""
    return f"cvfs mount --root-sha256 {root_sha256} URL DIR"


def warn(text: str) -> None:
    """Of what does not make a command fail."""
    click.echo(f"{PROGRAM}: warning: {' '.join(text.split())}", err=True)


def warn_of_clock(newest: "Manifest") -> None:
    """Of a clock that has gone back since the newest revision, or had gone ahead: what it signs expires as it says."""
    if newest.published_s > now_s() + _CLOCKS_DIFFER_S:
        warn(
            f"revision {newest.revision} is of {show_minute(newest.published_s)}, but the clock of this host says "
            f"{show_minute(now_s())}: it is wrong, or was then"
        )
