"""How the values of settings are written: in TOML, or as the text of an option or a variable of the environment.

A parser takes either form, and the directory from which a relative path counts; it raises ValueError for what it
cannot use, with a text that adds to what the kind says is wanted, or none. OSError: there is no current directory.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Parser = Callable[[Any, Path], Any]

# Compiled when they are used: few commands do.
_SIZE = r"(\d+(?:\.\d+)?)\s*(?:([KMGTP])(i?B)?)?B?"
_UNITS = "KMGTP"
_SECONDS = r"(\d+(?:\.\d+)?)\s*(s|sec|min|m|h|d)?"
_IN_SECONDS = {None: 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_YES_NO = {"1": True, "yes": True, "true": True, "on": True, "0": False, "no": False, "false": False, "off": False}
_ADDRESS = r"(https?|file)://\S+"
_TAG = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_HOST_AND_PORT = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):\d{1,5}"
_DOMAIN = r"[a-z0-9][a-z0-9.-]*"

MAX_WORKERS = 16

HERE = Path()
"""The current directory, to count paths from. It may be gone, which matters only if a path is relative."""

OTHERS = -1
"""In a map of ids: every id that it does not name."""


class Kind(NamedTuple):
    """A way to write values: `wanted` completes "wanted ..." in an error, `metavar` stands in --help.

    `wanted_text` does of an option or a variable of the environment, where that is written otherwise than in a file.
    """

    wanted: str
    parse: Parser
    metavar: str
    wanted_text: str = ""

    def complain(self, value: Any, error: ValueError, *, in_file: bool) -> str:
        """What to say of a value that the parser refused with `error`."""
        wanted = self.wanted if in_file else self.wanted_text or self.wanted
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        return f"wanted {wanted}, not {shown!r}" + (f" ({error})" if error.args else "")


def _path(value: Any, base: Path) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\0" in os.fspath(value):
        raise ValueError
    try:
        home = Path(value).expanduser()
    except RuntimeError as error:  # no such user
        raise ValueError from error
    # Not resolved: what a link leads to may change.
    return Path(os.path.normpath((base / home).absolute()))


def _paths(value: Any, base: Path) -> tuple[Path, ...]:
    parts = value.split(":") if isinstance(value, str) else _list(value)
    return tuple(_path(part, base) for part in parts if part)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError
    return list(value)


def _text(value: Any, _: Path) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError
    return value


def _switch(value: Any, _: Path) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _YES_NO:
        return _YES_NO[value.lower()]
    raise ValueError


def _seconds(value: Any, _: Path) -> float:
    if isinstance(value, str) and (match := re.fullmatch(_SECONDS, value.strip())):
        value = float(match[1]) * _IN_SECONDS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.1 <= value <= 1e9:
        raise ValueError
    return float(value)


def _size(value: Any, _: Path) -> int:
    if isinstance(value, str) and (match := re.fullmatch(_SIZE, value.strip(), re.IGNORECASE)):
        base = 1000 if match[3] and match[3].lower() == "b" else 1024
        value = int(float(match[1]) * (base ** (_UNITS.index(match[2].upper()) + 1) if match[2] else 1))
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError
    return value


def _size_or_share(value: Any, base: Path) -> int | float:
    if isinstance(value, str) and value.strip().endswith("%"):
        share = float(value.strip()[:-1]) / 100
        if not 0 < share < 1:
            raise ValueError
        return share
    return _size(value, base)


def _address(value: Any, _: Path) -> str:
    if not isinstance(value, str) or not re.fullmatch(_ADDRESS, value):
        raise ValueError
    return value


def _addresses(value: Any, base: Path) -> tuple[str, ...]:
    parts = value.split() if isinstance(value, str) else _list(value)
    return tuple(_address(part, base) for part in parts)


def _proxies(value: Any, base: Path) -> tuple[tuple[str, ...], ...]:
    """Groups: in TOML a list of lists, or of texts; in a text parted by ";", their members by "|"."""
    groups = value.split(";") if isinstance(value, str) else _list(value)
    members = [group.split("|") if isinstance(group, str) else _list(group) for group in groups if group]
    return tuple(tuple(_proxy(member, base) for member in group) for group in members)


def _proxy(value: Any, base: Path) -> str:
    if isinstance(value, str) and value.strip() == "DIRECT":
        return "DIRECT"
    address = _address(value.strip() if isinstance(value, str) else value, base)
    if address.startswith("file:"):
        raise ValueError
    return address


def _workers(value: Any, _: Path) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_WORKERS:
        raise ValueError
    return value


def _revision(value: Any, _: Path) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError
    return value


def _tag(value: Any, _: Path) -> str:
    if not isinstance(value, str) or not re.fullmatch(_TAG, value) or value.isdecimal():
        raise ValueError
    return value


def _instant(value: Any, _: Path) -> int:
    import datetime

    from cvfs.which import parse_date

    if isinstance(value, datetime.date):
        value = value.isoformat()
    if not isinstance(value, str):
        raise ValueError
    return parse_date(value)


def _user(value: Any, _: Path) -> int:
    return _id(value, _user_named)


def _group(value: Any, _: Path) -> int:
    return _id(value, _group_named)


def _id(value: Any, named: Callable[[str], int]) -> int:
    if isinstance(value, str):
        value = int(value) if value.isdecimal() else named(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 0xFFFFFFFF:
        raise ValueError
    return value


def _user_named(name: str) -> int:
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ValueError(f"there is no user {name!r}") from None


def _group_named(name: str) -> int:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {name!r}") from None


def _id_map(value: Any, base: Path) -> dict[int, int]:
    """A table, or the name of a file with a line "FROM TO" for each; FROM "*" is every other id."""
    if isinstance(value, str | Path):
        return _read_id_map(_path(value, base))
    if not isinstance(value, dict):
        raise ValueError
    found: dict[int, int] = {}
    for key, to in value.items():
        _add_id(found, key, to, "")
    return found


def _add_id(found: dict[int, int], key: Any, to: Any, where: str) -> None:
    """Raises ValueError also for an id that is in the map already: nobody can know which of the two is meant."""
    number = OTHERS if key == "*" else _number(key)
    if number in found:
        raise ValueError(f"{where}{key} is there twice")
    found[number] = _number(to)


def _number(value: Any) -> int:
    return _id(value, int)


def _read_id_map(path: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if len(words) not in (0, 2):
            raise ValueError(f"{path}:{number} is not two ids")
        if words:
            _add_id(found, words[0], words[1], f"{path}:{number}: ")
    return found


def _variables(value: Any, _: Path) -> dict[str, str]:
    if not isinstance(value, dict):
        words = value.split() if isinstance(value, str) else _list(value)
        value = dict(_pair(word) for word in words)
    for name, text in value.items():
        if not re.fullmatch(_VARIABLE, name) or not isinstance(text, str) or "\0" in text:
            raise ValueError
    return dict(value)


def _domains(value: Any, base: Path) -> dict[str, str]:
    """A table; in a text, DOMAIN=ADDRESS, parted by spaces."""
    if not isinstance(value, dict):
        words = value.split() if isinstance(value, str) else _list(value)
        value = dict(_pair(word) for word in words)
    for domain, address in value.items():
        if not re.fullmatch(_DOMAIN, domain) or "{name}" not in _address(address, base):
            raise ValueError
    return dict(value)


def _pair(word: Any) -> tuple[str, str]:
    if not isinstance(word, str) or "=" not in word:
        raise ValueError
    name, _, text = word.partition("=")
    return name, text


def _metrics_address(value: Any, base: Path) -> str:
    kind, _, place = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind in ("unix", "textfile"):
        return f"{kind}:{_path(place, base)}"
    if not re.fullmatch(_HOST_AND_PORT, _text(value, base)) or int(value.rpartition(":")[2]) > 0xFFFF:
        raise ValueError
    return str(value)


def one_of(*words: str) -> Kind:
    def parse(value: Any, _: Path) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return Kind("one of " + ", ".join(words), parse, "|".join(words))


PATH = Kind("a path", _path, "PATH")
PATHS = Kind("a list of directories", _paths, "DIRS", "directories, separated by colons")
TEXT = Kind("a text", _text, "TEXT")
SWITCH = Kind("true or false", _switch, "")
SECONDS = Kind("seconds, at least 0.1 (or a text like '5 min')", _seconds, "SECONDS")
REVISION = Kind("a revision's number", _revision, "N")
TAG = Kind("a tag's name", _tag, "NAME")
INSTANT = Kind("a date or time in ISO 8601, like 2026-05-01 or 2026-05-01T12:00:00Z", _instant, "ISO-DATE")
WORKERS = Kind(f"a number from 1 to {MAX_WORKERS}", _workers, "NUMBER")
SIZE_OR_SHARE = Kind("bytes, a text like '20 GB', or a share like '80 %'", _size_or_share, "SIZE")
ADDRESS = Kind("an address like http://server/path", _address, "URL")
ADDRESSES = Kind("a list of addresses like http://server/path", _addresses, "URL", "an address like http://server/path")
PROXIES = Kind(
    "groups of proxies like [['http://a:3128', 'http://b:3128'], ['DIRECT']]",
    _proxies,
    "GROUPS",
    "groups of proxies like http://a:3128|http://b:3128;DIRECT",
)
USER = Kind("a user's number or name", _user, "USER")
GROUP = Kind("a group's number or name", _group, "GROUP")
ID_MAP = Kind(
    "a table of ids, like {1000 = 0, '*' = 65534}, or the name of a file of such lines",
    _id_map,
    "FILE",
    "the name of a file with two ids a line, like 1000 0",
)
METRICS = Kind("unix:PATH, textfile:PATH or HOST:PORT", _metrics_address, "ADDRESS")
DOMAINS = Kind(
    "a table of addresses by domain, like {'example.org' = 'http://server/{name}'}",
    _domains,
    "DOMAIN=URL",
    "a domain and an address, like example.org=http://server/{name}",
)
VARIABLES = Kind(
    "a table of texts by name, like {COMPILER = 'gcc'}", _variables, "NAME=TEXT", "a name and a text, like COMPILER=gcc"
)
