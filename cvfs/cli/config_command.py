"""cvfs config."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import click

from cvfs import terminal
from cvfs.cli import common
from cvfs.config import Configuration, Settings
from cvfs.config.kinds import OTHERS
from cvfs.config.layers import DEFAULT, address_of, file_of, is_name, own_directory
from cvfs.config.settings import TABLE
from cvfs.errors import ConfigError

if TYPE_CHECKING:
    from cvfs.heads import Head

_ADDED = tuple(setting.name for setting in TABLE.values() if setting.scope != "host" and setting.option)


@click.group("config", epilog="Example: cvfs config add --root-sha256 HEX http://software.example.org")
def command() -> None:
    """Show the settings that hold, and configure repositories."""


@command.command("show", epilog="Example: cvfs config show software.example.org")
@click.argument("repository", metavar="[NAME]", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: {setting: {value, origin}}.")
@common.mount_options
def show(repository: str | None, as_json: bool) -> None:
    """Print the value of every setting and where it comes from: for all repositories, or for the one called NAME.

    What is printed could stand in a file of settings. Options and variables of the environment count as they would in
    another command.
    """
    configuration = common.configuration()
    if repository is not None and not configuration.has(repository):
        raise ConfigError(f"no repository {repository!r} is configured: see `cvfs config list`")
    rows = _rows(configuration, repository)
    if as_json:
        terminal.print_json({row[0]: {"value": row[1], "origin": row[2]} for row in rows})
        return
    from cvfs.config.notation import write_line

    for setting, value, origin in rows:
        line = f"# {setting} is not set" if value is None else write_line(setting, value)
        click.echo(f"{line:<48}  # {origin}" if value is not None else line)


def _rows(configuration: Configuration, name: str | None) -> list[tuple[str, Any, str]]:
    """(setting, value, origin); where no repository is meant, without what only one can have."""
    effective, settings = configuration.effective(name), configuration.settings(name)
    rows = []
    for setting in TABLE.values():
        if name is not None or setting.scope != "repository":
            _, origin = effective.get(setting.name, (None, DEFAULT))
            rows.append((setting.name, _plain(getattr(settings, setting.name)), origin.describe(setting.name)))
    return rows


def _plain(value: Any) -> Any:
    """The value as JSON and TOML have it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {"*" if key == OTHERS else str(key): each for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


@command.command("list", epilog="Example: cvfs config list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def list_command(as_json: bool) -> None:
    """List the configured repositories: name, address, and the files that say so.

    Those whose configuration cannot be used are told of after the others; the exit status is 1 then.
    """
    configuration = common.configuration()
    rows, problems = [], []
    for name in configuration.names():
        try:
            url = configuration.settings(name).url or ""
        except ConfigError as error:
            problems.append(str(error))
        else:
            rows.append((name, url, configuration.files(name)))
    problems = list(dict.fromkeys(problems))  # that of config.toml is the same for each
    if as_json:
        repositories = [{"name": name, "url": url, "files": list(map(str, files))} for name, url, files in rows]
        terminal.print_json({"repositories": repositories, "problems": problems})
    else:
        width = max((len(name) for name, _, _ in rows), default=0)
        for name, url, files in rows:
            click.echo(f"{name:<{width}}  {url}  ({', '.join(map(str, files))})")
    for problem in problems:
        click.echo(f"cvfs: error: {problem}", err=True)
    if problems:
        sys.exit(1)


@command.command("add", epilog="Example: cvfs config add --root-sha256 HEX http://software.example.org")
@click.argument("url")
@click.option("--no-check", is_flag=True, help="Do not try whether it can be opened.")
@click.option("--replace", is_flag=True, help="Overwrite what is configured under this name.")
@common.setting_options(*_ADDED)
def add(url: str, no_check: bool, replace: bool) -> None:
    """Configure the repository at URL, after trying whether it can be opened: afterwards its name will do for URL.

    All options given here are written too. The root of trust that the repository was found to have is pinned.
    """
    location = address_of(url)
    settings = common.configuration({"url": location}, to_write=True).settings()
    said = {name: _plain(getattr(settings, name)) for name in ("url", *common.options_said())}
    if no_check:
        name = settings.name or _name_in(location)
    else:
        head = _open(location, settings)
        name = head.manifest.repository
        said |= {"trust_on_first_use": None, "root": None, "root_sha256": head.trusted.root_ids[-1]}
    _write(name, {key: value for key, value in said.items() if value is not None and value not in ([], {})}, replace)


def _open(url: str, settings: Settings) -> "Head":
    from cvfs.mount.client import open_repository

    async def opened() -> "Head":
        async with open_repository(url, settings) as client:
            head = client.heads.head
        assert head is not None
        return head

    return common.run(opened)


def _name_in(url: str) -> str:
    """What a repository at this address is called by custom. Raises ConfigError if that cannot be seen."""
    parts = urlsplit(url)
    for part in (unquote(parts.path.rstrip("/").rpartition("/")[2]), parts.hostname or ""):
        if is_name(part) and "." in part:
            return part
    raise ConfigError(f"the name of the repository cannot be seen in {url}: use --name")


def _write(name: str, values: dict[str, Any], replace: bool) -> None:
    from cvfs.config.notation import write_file

    if not is_name(name):
        raise ConfigError(f"not the name of a repository: {name!r}")
    path = file_of(own_directory(), name)
    if path.exists() and not replace:
        raise ConfigError(f"{name} is configured already, in {path}: use --replace")
    write_file(path, values)
    click.echo(f"{name}: {path}")


@command.command("remove", epilog="Example: cvfs config remove software.example.org")
@click.argument("name")
def remove(name: str) -> None:
    """Take the repository NAME out of the configuration. Mounts, and what is cached and trusted, stay."""
    path = file_of(own_directory(), name)
    others = [each for each in common.configuration().files(name) if each != path]
    if not is_name(name) or not path.exists():
        elsewhere = f": it is in {others[0]}" if others else ""
        raise ConfigError(f"{name!r} is not configured in {path.parent}{elsewhere}")
    try:
        path.unlink()
    except OSError as error:
        raise ConfigError(f"cannot remove {path}: {error.strerror}") from None
    for other in others:
        click.echo(f"cvfs: warning: {name} is configured in {other} too", err=True)
