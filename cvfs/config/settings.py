"""All settings there are: one table, from which files, environment, options and `cvfs config show` take them."""

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from cvfs.config import kinds
from cvfs.config.kinds import Kind
from cvfs.errors import ConfigError
from cvfs.which import Which

Scope = Literal["host", "any", "repository"]
"""Where a setting may stand: "host": in config.toml only, since a process has one for all repositories; "any": there
for all repositories, or in the file of one; "repository": in the file of one only."""


ENGINES = ("auto", "channel", "pyfuse3")


class Setting(NamedTuple):
    """One setting. `variable` of the environment and `option` of the commands that have it; empty: there is none."""

    name: str
    kind: Kind
    scope: Scope
    help: str
    variable: str
    option: str
    is_list: bool


def _home(variable: str, below_home: str) -> Path:
    """A directory of the XDG base directory specification."""
    return Path(os.environ.get(variable) or Path.home() / below_home)


def default_cache() -> Path:
    """/var/cache/cvfs as root, $XDG_CACHE_HOME/cvfs for others. It may be wiped at any time."""
    return Path("/var/cache/cvfs") if os.geteuid() == 0 else _home("XDG_CACHE_HOME", ".cache") / "cvfs"


def default_state() -> Path:
    """/var/lib/cvfs as root, $XDG_STATE_HOME/cvfs for others. What is trusted is kept there."""
    return Path("/var/lib/cvfs") if os.geteuid() == 0 else _home("XDG_STATE_HOME", ".local/state") / "cvfs"


def default_logs() -> Path:
    """/var/log/cvfs as root, $XDG_STATE_HOME/cvfs/log for others."""
    return Path("/var/log/cvfs") if os.geteuid() == 0 else _home("XDG_STATE_HOME", ".local/state") / "cvfs/log"


def default_runtime() -> Path:
    """/run/cvfs as root, $XDG_RUNTIME_DIR/cvfs or a directory of one's own in /tmp for others."""
    if os.geteuid() == 0:
        return Path("/run/cvfs")
    session = os.environ.get("XDG_RUNTIME_DIR")
    # The runtime directory checks whose it is before it is used.
    return Path(session) / "cvfs" if session else Path(f"/tmp/cvfs-{os.geteuid()}")  # noqa: S108


class _Declared(NamedTuple):
    """A setting before it has its name."""

    kind: Kind
    scope: Scope
    help: str
    variable: str | None
    option: str | None
    is_list: bool


_DECLARED: list[_Declared] = []
"""In the order of the fields."""


def _setting(
    kind: Kind,
    scope: Scope,
    help: str,  # noqa: A002 (as click has it)
    default: Any = None,
    *,
    variable: str | None = None,
    option: str | None = None,
    is_list: bool = False,
) -> Any:
    """A field of Settings. `variable` and `option` are made of the name where they are not given."""
    _DECLARED.append(_Declared(kind, scope, help, variable, option, is_list))
    return msgspec.field(default_factory=default) if callable(default) else msgspec.field(default=default)


# Not a dataclass: with this many fields that takes four times as long to import.
class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one repository, or for a process without any. Times are in seconds, sizes in bytes.

    A size is an int; where a share of the file system is allowed, that is a float.
    """

    cache: Path = _setting(kinds.PATH, "host", "The cache, one for all mounts of a user.", default_cache)
    cache_limit: int | float | None = _setting(
        kinds.SIZE_OR_SHARE, "host", "What the cache may use [default: 20 GB or 80 % of the free space, if less]."
    )
    keep_free: int | float = _setting(
        kinds.SIZE_OR_SHARE, "host", "What the cache leaves free of its file system.", 0.05
    )
    state: Path = _setting(
        kinds.PATH,
        "host",
        "Where the last good revision is remembered.",
        default_state,
        variable="CVFS_STATE_DIR",
        option="--state-dir",
    )
    logs: Path = _setting(
        kinds.PATH, "host", "Where daemons log to.", default_logs, variable="CVFS_LOG_DIR", option="--log-dir"
    )
    runtime: Path = _setting(
        kinds.PATH,
        "host",
        "Where the sockets of mounts are.",
        default_runtime,
        variable="CVFS_RUNTIME_DIR",
        option="--runtime-dir",
    )
    roots: tuple[Path, ...] = _setting(
        kinds.PATHS,
        "host",
        "Directories of NAME.root.json, by which repositories are trusted.",
        (Path("/etc/cvfs/keys"),),
    )
    metrics: str | None = _setting(
        kinds.METRICS, "host", "Where metrics are served: unix:PATH, HOST:PORT or textfile:PATH."
    )
    log_format: Literal["text", "json"] = _setting(
        kinds.one_of("text", "json"), "host", "How a daemon's log is written.", "text"
    )

    domains: dict[str, str] = _setting(
        kinds.DOMAINS,
        "host",
        "Where all repositories of a domain are, for those that are not configured.",
        dict,
        option="--domain",
        is_list=True,
    )

    url: str | None = _setting(kinds.ADDRESS, "repository", "The repository's address.", variable="", option="")
    mirrors: tuple[str, ...] = _setting(
        kinds.ADDRESSES, "repository", "Other servers that have the repository.", (), option="--mirror", is_list=True
    )
    name: str | None = _setting(kinds.TEXT, "repository", "What the repository must be called.", variable="")
    root: Path | None = _setting(kinds.PATH, "repository", "The publisher's root.json.")
    root_sha256: str | None = _setting(kinds.TEXT, "repository", "The SHA-256 of a root.json that the mirror has.")
    trust_on_first_use: bool = _setting(
        kinds.SWITCH, "repository", "Trust whoever answers now, and from then on only that one.", False
    )

    revision: int | None = _setting(
        kinds.REVISION, "repository", "This revision, for ever, instead of the newest.", variable=""
    )
    tag: str | None = _setting(kinds.TAG, "repository", "The revision with this name, likewise.", variable="")
    date: int | None = _setting(
        kinds.INSTANT, "repository", "The newest revision of this date (UTC), likewise.", variable=""
    )

    deadline_s: float = _setting(kinds.SECONDS, "any", "For each fetch, with all its attempts.", 30.0)
    connect_deadline_s: float = _setting(kinds.SECONDS, "any", "For a server or proxy to take a connection.", 5.0)
    start_deadline_s: float = _setting(
        kinds.SECONDS, "any", "Until a command knows that the repository can be used.", 8.0
    )
    known_deadline_s: float = _setting(
        kinds.SECONDS, "any", "The same, where an earlier revision could be used instead.", 3.0
    )
    refresh_s: float = _setting(kinds.SECONDS, "any", "How often to ask for news.", 60.0)
    strict_freshness: bool = _setting(kinds.SWITCH, "any", "Serve nothing while what is trusted has expired.", False)
    proxies: tuple[tuple[str, ...], ...] = _setting(
        kinds.PROXIES, "any", "Groups of HTTP proxies: 'http://a:3128|http://b:3128;DIRECT' [default: none].", ()
    )
    ca: Path | None = _setting(kinds.PATH, "any", "A PEM file of authorities to believe, instead of the system's.")
    credentials: Path | None = _setting(kinds.PATH, "any", "A file (mode 0600) of user names, passwords and tokens.")

    engine: Literal["auto", "channel", "pyfuse3"] = _setting(
        kinds.one_of(*ENGINES), "any", "What speaks to the kernel.", "auto"
    )
    workers: int = _setting(kinds.WORKERS, "any", "Processes that serve the mount [default: 1].", 1)
    allow_other: bool | None = _setting(kinds.SWITCH, "any", "Let other users in [default: where permitted].")
    suid: bool = _setting(kinds.SWITCH, "any", "Let set-id bits count.", False)
    dev: bool = _setting(kinds.SWITCH, "any", "Let device files count.", False)
    exec: bool = _setting(kinds.SWITCH, "any", "Let programs run from it.", True)
    uid: int | None = _setting(kinds.USER, "any", "Whom all files belong to.")
    gid: int | None = _setting(kinds.GROUP, "any", "Which group all files belong to.")
    own: bool = _setting(kinds.SWITCH, "any", "All files belong to who mounts.", False)
    uid_map: dict[int, int] = _setting(kinds.ID_MAP, "any", "Other numbers for users.", dict)
    gid_map: dict[int, int] = _setting(kinds.ID_MAP, "any", "Other numbers for groups.", dict)
    variables: dict[str, str] = _setting(
        kinds.VARIABLES, "any", "What $(NAME) in a symbolic link means.", dict, option="--variable", is_list=True
    )

    def __post_init__(self) -> None:
        if (self.revision, self.tag, self.date).count(None) < 2:
            raise ConfigError("use one of revision, tag and date (URL@TAG and URL@N say it too)")

    @property
    def which(self) -> Which | None:
        """The revision that is wanted instead of the newest."""
        found = (self.revision, self.tag, self.date)
        return None if found.count(None) == 3 else Which(*found)


def _named(name: str, declared: _Declared) -> Setting:
    kind, scope, about, variable, option, is_list = declared
    return Setting(
        name,
        kind,
        scope,
        about,
        f"CVFS_{name.upper()}" if variable is None else variable,
        "--" + name.removesuffix("_s").replace("_", "-") if option is None else option,
        is_list,
    )


TABLE = {name: _named(name, declared) for name, declared in zip(Settings.__struct_fields__, _DECLARED, strict=True)}
"""Every setting, by name, in the order in which they are shown."""
