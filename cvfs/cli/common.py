"""What the commands share: options, names made fit to print, and running a coroutine."""

import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from cvfs.config import Settings, Trust

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


_TRUST = "cvfs.trust"
"""Where options of this kind wait until the settings are made."""


def storage_options(function: Function) -> Function:
    """--cache and --state-dir, and where trust begins."""
    state = click.option(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="Where the last good revision is remembered ($CVFS_STATE_DIR).",
    )
    cache = click.option("--cache", type=Path, metavar="DIR", help="The cache of this host ($CVFS_CACHE).")
    return cache(state(_trust_options(function)))


def _trust_options(function: Function) -> Function:
    """--root, --root-sha256, --trust-on-first-use and --name. `make_settings` collects them."""
    aside: dict[str, Any] = {"expose_value": False, "callback": _collect}
    options = (
        click.option(
            "--root",
            type=Path,
            metavar="FILE",
            help="The publisher's root.json ($CVFS_ROOT).",
            **aside,
        ),
        click.option(
            "--root-sha256", "sha256", metavar="HEX", help="The SHA-256 of a root.json that the mirror has.", **aside
        ),
        click.option(
            "--trust-on-first-use",
            "first_use",
            is_flag=True,
            help="Trust whoever answers now, and from then on only that one.",
            **aside,
        ),
        click.option("--name", metavar="NAME", help="What the repository must be called.", **aside),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _collect(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep an option's value aside: all commands have it, and none has to know."""
    context.meta.setdefault(_TRUST, {})[parameter.name] = value


def _trust() -> Trust:
    """What the options say; else the root named in the environment."""
    context = click.get_current_context(silent=True)
    said: dict[str, Any] = context.meta.get(_TRUST, {}) if context else {}
    named = os.environ.get("CVFS_ROOT")
    if named and not (said.get("root") or said.get("sha256") or said.get("first_use")):
        said = {**said, "root": Path(named)}
    if said.get("root"):
        said = {**said, "root": said["root"].absolute()}
    return Trust(**said)


def revision_option(function: Function) -> Function:
    """--revision."""
    option = click.option(
        "--revision", type=click.IntRange(min=0), metavar="N", help="An older revision instead of the newest."
    )
    return option(function)


def make_settings(cache: Path | None, state_dir: Path | None) -> Settings:
    settings = Settings(trust=_trust())
    if cache is not None:
        settings = replace(settings, cache=cache.absolute())
    if state_dir is not None:
        settings = replace(settings, state=state_dir.absolute())
    return settings


def run(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What the coroutine returns; its exceptions without the groups that nurseries put them in."""
    import trio

    from cvfs.mount.client import single

    try:
        return trio.run(function)
    except BaseExceptionGroup as group:
        raise single(group) from None


def setup_quiet_logging() -> None:
    """Warnings go to stderr, one line each."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="cvfs: warning: %(message)s", stream=sys.stderr)


def printable(name: bytes, *, escape: bool) -> bytes:
    """`name` as it is, or with all that could upset a terminal written as \\n, \\x1b and the like."""
    if not escape:
        return name
    text = name.decode("utf-8", "surrogateescape")
    return "".join(map(_escaped, text)).encode()


def _escaped(character: str) -> str:
    if character.isprintable() and character != "\\":
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character <= "\x7f":
        return character.encode("unicode_escape").decode()
    return f"\\U{ord(character):08x}"  # not \\x85, which is a byte that is no UTF-8


def write_out(data: bytes | bytearray | memoryview) -> None:
    """To standard output, whole. Raises BrokenPipeError when the reader has gone."""
    sys.stdout.buffer.write(data)


def path_bytes(path: str) -> bytes:
    return os.fsencode(path)
