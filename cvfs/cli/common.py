"""What the commands share: options, names made fit to print, and running a coroutine."""

import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cvfs import terminal
from cvfs.config import Configuration, Settings, read_configuration
from cvfs.config.kinds import HERE, SWITCH
from cvfs.config.layers import find_alone
from cvfs.config.settings import TABLE, Setting
from cvfs.errors import ConfigError

if TYPE_CHECKING:
    from cvfs.mount.runtime import Runtime

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

NOTHING: Mapping[str, Any] = {}


_OPTIONS = "cvfs.options"
"""Where options that are settings wait until the configuration is read."""

_STORAGE = ("cache", "state")
_TRUST = ("root", "root_sha256", "trust_on_first_use", "name")
_WHICH = ("revision", "tag", "date")
_NETWORK = ("mirrors", "proxies", "ca", "credentials", "deadline_s")


def setting_options(*names: str) -> Callable[[Function], Function]:
    """An option for each of these settings. Commands need not know them: `locate` and `host_settings` do."""

    def decorate(function: Function) -> Function:
        for name in reversed(names):
            function = _option(TABLE[name])(function)
        return function

    return decorate


def _option(setting: Setting) -> Callable[[Function], Function]:
    kept_aside: dict[str, Any] = {"expose_value": False, "callback": _keep, "default": None}
    about = setting.help + (f" [${setting.variable}]" if setting.variable else "")
    if setting.kind is SWITCH:
        word = setting.option.removeprefix("--")
        return click.option(f"{setting.option}/--no-{word}", setting.name, help=about, **kept_aside)
    name = setting.kind.metavar
    return click.option(setting.option, setting.name, metavar=name, multiple=setting.is_list, help=about, **kept_aside)


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is None or value == () or parameter.name is None:
        return
    kind = TABLE[parameter.name].kind
    try:
        kind.parse(value, HERE)
    except ValueError as error:
        raise click.BadParameter(kind.complain(value, error, in_file=False)) from None
    context.meta.setdefault(_OPTIONS, {})[parameter.name] = value


storage_options = setting_options(*_WHICH, *_STORAGE, *_TRUST, *_NETWORK)
"""What every command has that reads a repository: where things are kept, where trust begins, how to get there."""

mount_options = setting_options(*(setting.name for setting in TABLE.values() if setting.option))
"""What a mount has: every setting there is."""


def configuration(more: Mapping[str, Any] = NOTHING, *, to_write: bool = False) -> Configuration:
    """All layers of settings, with the options of the command that is being run, and `more`. Raises ConfigError.

    `to_write`: the command may make the directory of its files.
    """
    return read_configuration({**options_said(), **more}, to_write=to_write)


def options_said() -> dict[str, Any]:
    """The settings that are options of the command that is being run, as they were typed."""
    context = click.get_current_context(silent=True)
    return dict(context.meta.get(_OPTIONS, {})) if context else {}


def locate(text: str) -> tuple[str, Settings]:
    """The address of the repository that a user names, and the settings for it. Raises ConfigError."""
    return configuration().locate(text)


def host_settings() -> Settings:
    """The settings of a command that needs no repository. Raises ConfigError."""
    return configuration().settings()


def find_runtime() -> "Runtime":
    """Where the sockets of mounts are, for a command about mounts that are there, which have settings of their own.
    What is wrong with the configuration is a warning, and need not be mended before a mount can be ended."""
    from cvfs.mount.runtime import Runtime

    try:
        return Runtime(host_settings().runtime)
    except ConfigError as error:
        click.echo(f"cvfs: warning: {' '.join(str(error).split())}", err=True)
    return Runtime(find_alone("runtime"))


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
    return terminal.escape(name.decode("utf-8", "surrogateescape")).encode() if escape else name
