"""User names, passwords and tokens for servers and proxies, from a file that only its owner can read.

Each is sent to the one origin that it was written down for, wherever a redirect leads:

    ["https://software.example.org"]
    token = "..."

    ["http://proxy.example.org:3128"]
    user = "node"
    password = "..."
"""

import base64
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvfs.errors import ConfigError
from cvfs.transport.url import check_base_url, origin_of

Auth = tuple[str, str] | str
"""(user, password) for basic authentication, or a bearer token."""

_MAX_BYTES = 1 << 20
_BASIC, _BEARER = {"user", "password"}, {"token"}


class Credentials:
    """What to send as `Authorization` to which origin ("https://host:port"). Never shown, not even by repr()."""

    def __init__(self, by_address: Mapping[str, Auth]) -> None:
        self._headers = {origin_of(address): _encode(auth) for address, auth in by_address.items()}

    def find(self, url: str) -> str | None:
        """The header's value for `url`, None if nothing is known for where that leads."""
        return self._headers.get(origin_of(url)) if self._headers else None


def load_credentials(path: Path) -> Credentials:
    """What the file says. Raises ConfigError: unreadable, open to others, or not of the form above.

    No error says more of the content than an origin, or a line's number.
    """
    import tomllib  # late: few need it

    try:
        tables = tomllib.loads(_read(path))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        where = str(error).rpartition("(")[2].rstrip(")") if isinstance(error, tomllib.TOMLDecodeError) else "UTF-8"
        raise ConfigError(f"cannot read the credentials in {path}: not TOML ({where})") from None
    return Credentials({_check_origin(path, origin): _auth(path, origin, table) for origin, table in tables.items()})


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()) or stat.S_IMODE(status.st_mode) & 0o077:
                raise ConfigError(f"the credentials in {path} are open to others: chown it to its user, and chmod 600")
            return file.read(_MAX_BYTES).decode()
    except OSError as error:
        raise ConfigError(f"cannot read the credentials in {path}: {error.strerror}") from None


def _check_origin(path: Path, address: str) -> str:
    try:
        check_base_url(address)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if address.startswith("file:") or address.rstrip("/").count("/") != 2:
        raise ConfigError(f"{path}: {address!r} is not scheme://host or scheme://host:port")
    return address


def _auth(path: Path, origin: str, table: Any) -> Auth:
    texts = isinstance(table, dict) and all(isinstance(text, str) and text.isprintable() for text in table.values())
    if texts and set(table) == _BASIC and ":" not in table["user"]:
        return table["user"], table["password"]
    if texts and set(table) == _BEARER and table["token"].isascii():
        return str(table["token"])
    raise ConfigError(f"{path}: {origin!r} needs user and password, or a token")


def _encode(auth: Auth) -> str:
    if isinstance(auth, str):
        return f"Bearer {auth}"
    return "Basic " + base64.b64encode(":".join(auth).encode()).decode()
