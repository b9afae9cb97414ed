"""Layers of settings, one over the other: defaults, files of the host, files of the user, environment, options.

In a directory of files (/etc/cvfs, $XDG_CONFIG_HOME/cvfs), config.toml is for every repository and
repositories.d/NAME.toml for one. All values are known before a command begins; nothing is read again later.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cvfs.config.kinds import HERE
from cvfs.config.settings import TABLE, Setting, Settings
from cvfs.errors import ConfigError
from cvfs.which import split_address

_NAME = r"[a-z0-9][a-z0-9.-]*"
_TRUST = ("root", "root_sha256", "trust_on_first_use")
_WHICH = ("revision", "tag", "date")
"""Whoever says one of these does not mean what a lower layer says of the others."""


class Origin(NamedTuple):
    """Where a value comes from: a file, or what `source` says."""

    source: str
    path: Path | None = None

    def describe(self, name: str) -> str:
        """For people; of a file, the line too."""
        if self.path is None:
            return self.source
        from cvfs.config.toml_file import line_of

        line = line_of(self.path, name)
        return f"{self.path}:{line}" if line else str(self.path)


DEFAULT = Origin("default")

Layer = dict[str, tuple[Any, Origin]]
"""Name of a setting: its value, and where it comes from."""


class Configuration:
    """The settings of this host and user, for any repository. Files are read when they are first needed."""

    def __init__(self, directories: Sequence[Path], environment: Mapping[str, str], options: Mapping[str, Any]) -> None:
        self._directories = directories
        self._upper: tuple[Layer, ...] = _of_environment(environment), _of_options(options)
        self._files: dict[Path, Layer | None] = {}

    def settings(self, name: str | None = None) -> Settings:
        """What holds for the configured repository `name`, or without any. Raises ConfigError."""
        return Settings(**{key: value for key, (value, _) in self.effective(name).items()})

    def effective(self, name: str | None = None) -> Layer:
        """The values that are not defaults, and where they come from. Raises ConfigError."""
        values: Layer = {"name": (name, DEFAULT)} if name else {}
        for directory in self._directories:
            _lay(values, self._read(directory / "config.toml", "host"))
            if name:
                _lay(values, self._read(file_of(directory, name), "repository"))
        for layer in self._upper:
            _lay(values, layer)
        return values

    def names(self) -> list[str]:
        """The repositories that have a file, sorted; whether the file can be used is not asked."""
        found: set[str] = set()
        for directory in self._directories:
            try:
                files = os.listdir(directory / "repositories.d")
            except OSError:
                continue
            found.update(name.removesuffix(".toml") for name in files if name.endswith(".toml"))
        return sorted(name for name in found if is_name(name))

    def has(self, name: str) -> bool:
        """Whether a repository of this name is configured."""
        return bool(self.files(name))

    def files(self, name: str) -> list[Path]:
        """The files of a configured repository, later ones over earlier ones."""
        if not is_name(name):
            return []
        return [path for path in (file_of(each, name) for each in self._directories) if os.path.exists(path)]

    def locate(self, text: str) -> tuple[str, Settings]:
        """The address that a user means, and what holds for it: the name of a configured repository, an address, or
        the directory of a store; behind it, perhaps, @ and a tag or the number of a revision. Raises ConfigError."""
        if not text:
            raise ConfigError("no repository is named: give an address, a NAME, or the directory of a store")
        if not os.path.isdir(text):
            text = self._take_which(text)
        if not self.has(text):
            return address_of(text, self.names()), self.settings()
        settings = self.settings(text)
        if settings.url is None:
            raise ConfigError(f"{self.files(text)[-1]}: 'url' is missing")
        return settings.url, settings

    def _take_which(self, text: str) -> str:
        """`text` without what it says of a revision, which holds from now on as an option does."""
        address, which = split_address(text)
        if which is not None:
            if any(name in layer for layer in self._upper for name in _WHICH):
                raise ConfigError(f"{text!r} and an option both say which revision: leave one of them out")
            name, value = ("tag", which.tag) if which.number is None else ("revision", which.number)
            self._upper = (*self._upper, {name: (value, Origin("address"))})
        return address

    def _read(self, path: Path, scope: str) -> Layer:
        layer = self._files.get(path)
        if layer is None:
            layer = self._files[path] = _of_file(path, scope) if os.path.exists(path) else {}
        return layer


def address_of(text: str, names: Sequence[str] = ()) -> str:
    """`text` if it is an address, or that of the directory of a store which it names. Raises ConfigError, which tells
    what `names` would have been known."""
    if "://" in text:
        return text
    path = Path(text)
    if not path.is_dir():
        what = f"{text!r} is neither configured, nor an address (http://...), nor a directory"
        raise ConfigError(f"no such repository: {what}" + (f"; configured: {', '.join(names)}" if names else ""))
    return path.absolute().as_uri()


def read_configuration(options: Mapping[str, Any] | None = None, *, to_write: bool = False) -> Configuration:
    """The configuration that a command goes by; `options` are settings by name, as texts or values.

    $CVFS_CONFIG names directories, parted by ":", instead of /etc/cvfs and $XDG_CONFIG_HOME/cvfs. Raises ConfigError:
    also where one that it names is not there, unless it is `to_write`, and may be made then.
    """
    directories = config_directories()
    if "CVFS_CONFIG" in os.environ and not to_write:
        for directory in directories:
            if not os.path.isdir(directory):
                raise ConfigError(f"there is no directory {directory}, which CVFS_CONFIG names")
    return Configuration(directories, os.environ, options or {})


def find_alone(name: str) -> Any:
    """What holds of one setting of the host, also where the rest cannot be used: directories that are gone, files that
    are broken and values that mean nothing are passed over."""
    from cvfs.config.toml_file import read_toml

    setting = TABLE[name]
    with suppress(ConfigError):
        if text := os.environ.get(setting.variable):
            return _parse(setting, text, HERE, Origin("environment"))
    for path in (directory / "config.toml" for directory in reversed(config_directories())):
        with suppress(ConfigError):
            said = read_toml(path) or {}
            if name in said:
                return _parse(setting, said[name], path.parent, Origin(str(path), path))
    return getattr(Settings(), name)


def config_directories() -> list[Path]:
    """Where files of settings are looked for, later ones over earlier ones."""
    named = os.environ.get("CVFS_CONFIG")
    if named is not None:
        return [Path(part).absolute() for part in named.split(":") if part]
    user = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [Path("/etc/cvfs"), Path(user, "cvfs")]


def is_name(text: str) -> bool:
    """Whether a repository could be called so, and so could a file of its settings."""
    return re.fullmatch(_NAME, text) is not None


def own_directory() -> Path:
    """The directory of files that this user writes: root the first one, others the last."""
    directories = config_directories()
    if not directories:
        raise ConfigError("CVFS_CONFIG names no directory to write to")
    return directories[0 if os.geteuid() == 0 else -1]


def file_of(directory: Path, name: str) -> Path:
    """Where a repository is configured in a directory of files."""
    return directory / "repositories.d" / f"{name}.toml"


def _lay(values: Layer, layer: Layer) -> None:
    """Put a layer over the others. Variables are joined; everything else is replaced."""
    if any(layer[name][0] for name in _TRUST if name in layer):
        for name in _TRUST:
            values.pop(name, None)
    if any(name in layer for name in _WHICH):
        for name in _WHICH:
            values.pop(name, None)
    below = values.get("variables")
    values.update(layer)
    if below and "variables" in layer:
        value, origin = layer["variables"]
        values["variables"] = {**below[0], **value}, origin


def _of_file(path: Path, scope: str) -> Layer:
    from cvfs.config.toml_file import read_toml

    origin = Origin(str(path), path)
    layer: Layer = {}
    for name, value in (read_toml(path) or {}).items():
        setting = TABLE.get(name)
        if setting is None:
            raise ConfigError(f"{origin.describe(name)}: unknown setting {name!r}{_similar(name)}")
        if setting.scope not in ("any", scope):
            where = "config.toml" if setting.scope == "host" else "repositories.d/NAME.toml"
            raise ConfigError(f"{origin.describe(name)}: {name!r} belongs into {where}")
        layer[name] = _parse(setting, value, path.parent, origin), origin
    return layer


def _of_environment(environment: Mapping[str, str]) -> Layer:
    layer: Layer = {}
    for setting in TABLE.values():
        text = environment.get(setting.variable) if setting.variable else None
        if text:
            origin = Origin(f"environment {setting.variable}")
            layer[setting.name] = _parse(setting, text, HERE, origin), origin
    return layer


def _of_options(options: Mapping[str, Any]) -> Layer:
    layer: Layer = {}
    for name, value in options.items():
        setting = TABLE[name]
        origin = Origin(f"option {setting.option}" if setting.option else "option")
        layer[name] = _parse(setting, value, HERE, origin), origin
    return layer


def _parse(setting: Setting, value: Any, base: Path, origin: Origin) -> Any:
    try:
        return setting.kind.parse(value, base)
    except ValueError as error:
        complaint = setting.kind.complain(value, error, in_file=origin.path is not None)
        raise ConfigError(f"{origin.describe(setting.name)}: {setting.name}: {complaint}") from None


def _similar(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, TABLE, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
