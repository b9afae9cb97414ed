"""Settings: which directories are used, for how long is waited, and what an address means."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from cvfs.errors import ConfigError


def _home(variable: str, below_home: str) -> Path:
    """A directory of the XDG base directory specification."""
    return Path(os.environ.get(variable) or Path.home() / below_home)


def _chosen(variable: str, for_root: str, for_others: Path) -> Path:
    """What the environment says, else the default."""
    named = os.environ.get(variable)
    if named:
        return Path(named).absolute()
    return Path(for_root) if os.geteuid() == 0 else for_others


def default_cache() -> Path:
    """$CVFS_CACHE, else /var/cache/cvfs as root, $XDG_CACHE_HOME/cvfs for others. It may be wiped at any time."""
    return _chosen("CVFS_CACHE", "/var/cache/cvfs", _home("XDG_CACHE_HOME", ".cache") / "cvfs")


def default_state() -> Path:
    """$CVFS_STATE_DIR, else /var/lib/cvfs as root, $XDG_STATE_HOME/cvfs for others. What is trusted is kept there."""
    return _chosen("CVFS_STATE_DIR", "/var/lib/cvfs", _home("XDG_STATE_HOME", ".local/state") / "cvfs")


def default_logs() -> Path:
    """$CVFS_LOG_DIR, else /var/log/cvfs as root, $XDG_STATE_HOME/cvfs/log for others."""
    return _chosen("CVFS_LOG_DIR", "/var/log/cvfs", _home("XDG_STATE_HOME", ".local/state") / "cvfs/log")


def default_runtime() -> Path:
    """$CVFS_RUNTIME_DIR, else /run/cvfs as root, $XDG_RUNTIME_DIR/cvfs or a directory of one's own in /tmp."""
    session = os.environ.get("XDG_RUNTIME_DIR")
    # The runtime directory checks whose it is before it is used.
    others = Path(session) / "cvfs" if session else Path(f"/tmp/cvfs-{os.geteuid()}")  # noqa: S108
    return _chosen("CVFS_RUNTIME_DIR", "/run/cvfs", others)


@dataclass(frozen=True, slots=True)
class Trust:
    """What the user says of a repository's root of trust: at most one of `root`, `sha256` and `first_use`."""

    root: Path | None = None
    sha256: str | None = None
    first_use: bool = False
    name: str | None = None


def default_roots() -> tuple[Path, ...]:
    """$CVFS_ROOTS, else /etc/cvfs/keys: directories of NAME.root.json, by which repositories are trusted."""
    named = os.environ.get("CVFS_ROOTS")
    return tuple(Path(part).absolute() for part in named.split(":") if part) if named else (Path("/etc/cvfs/keys"),)


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for one process. `deadline_s` bounds each fetch; `start_deadline_s` what a command may need until it
    knows that the repository can be used, `known_deadline_s` that where an earlier revision could be used instead.

    `trust` says where the trust in the repository begins; `strict_freshness`: nothing is read while what is trusted
    has expired. `refresh_s` is how often a mirror is asked for news."""

    cache: Path = field(default_factory=default_cache)
    state: Path = field(default_factory=default_state)
    logs: Path = field(default_factory=default_logs)
    runtime: Path = field(default_factory=default_runtime)
    roots: tuple[Path, ...] = field(default_factory=default_roots)
    deadline_s: float = 30.0
    start_deadline_s: float = 8.0
    known_deadline_s: float = 3.0
    refresh_s: float = 60.0
    strict_freshness: bool = False
    trust: Trust = Trust()


def parse_location(text: str) -> str:
    """The address that `text` means: http://, https:// or file://, or the path of a store on this machine.

    Raises ConfigError.
    """
    if "://" in text:
        return text
    path = Path(text)
    if not path.is_dir():
        raise ConfigError(f"no such repository: {text!r} is neither an address (http://...) nor a directory")
    return path.absolute().as_uri()
