"""Which repositories a mount shows, and where each of them is."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from cvfs.config import Configuration, Settings, read_configuration
from cvfs.config.layers import config_directories, is_name
from cvfs.errors import ConfigError
from cvfs.which import Which


class Site(msgspec.Struct, frozen=True):
    """A repository as somebody wants to use it: its address, what holds for it, and `revision` if it is to stay there.

    `name` is what a mount calls it: its place in the mount, and what its inode numbers are made of. Empty: it is
    mounted alone, and has the name that its publisher gave it.
    """

    url: str
    settings: Settings
    revision: Which | None = None
    name: str = ""


class Names(msgspec.Struct, frozen=True):
    """The repositories that are listed, and the domains of which others may be tried."""

    listed: tuple[str, ...]
    domains: tuple[str, ...] = ()

    def allows(self, name: str) -> bool:
        """Whether a name that is not listed may be tried."""
        return is_name(name) and any(name.endswith("." + domain) for domain in self.domains)


class Sites(Protocol):
    """The repositories that a host has, as they change: whoever asks again may get another answer."""

    def stamp_ns(self) -> int:
        """When the names have last changed, in ns since 1970. Takes microseconds; the others read files."""

    def names(self) -> Names:
        """Raises ConfigError."""

    def site(self, name: str) -> Site:
        """Raises ConfigError."""

    def problems(self) -> list[str]:
        """What is wrong with the configuration, a line for each thing: of all repositories, used or not."""


class ConfiguredSites(msgspec.Struct, frozen=True):
    """What the configuration says, read anew for each answer. `options` are settings that go before it."""

    options: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def stamp_ns(self) -> int:
        places = [each / below for each in config_directories() for below in ("repositories.d", "config.toml")]
        return max(map(_mtime_ns, places), default=0)

    def names(self) -> Names:
        configuration = read_configuration(self.options)
        return Names(tuple(configuration.names()), tuple(configuration.settings().domains))

    def site(self, name: str) -> Site:
        return _site_in(read_configuration(self.options), name)

    def problems(self) -> list[str]:
        try:
            return problems_in(read_configuration(self.options))
        except ConfigError as error:
            return [str(error)]


def problems_in(configuration: Configuration) -> list[str]:
    """What is wrong with it, a line for each thing. Reads the files of all repositories."""
    try:
        configuration.settings()
    except ConfigError as error:
        return [str(error)]  # it is the same for each of them
    problems = []
    for name in configuration.names():
        try:
            _site_in(configuration, name)
        except ConfigError as error:
            problems.append(str(error))
    return problems


def _site_in(configuration: Configuration, name: str) -> Site:
    settings = configuration.settings(name)
    template = _template_for(name, settings)
    url = settings.url or (template and template.replace("{name}", name))
    if not url:
        raise ConfigError(f"the configuration of {name} has no 'url'")
    return Site(url, settings, settings.which, name)


def _template_for(name: str, settings: Settings) -> str | None:
    """The address of all repositories in the narrowest domain that `name` is in."""
    found = [domain for domain in settings.domains if name.endswith("." + domain)]
    return settings.domains[max(found, key=len)] if found else None


def _mtime_ns(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
