"""Where the trust in a repository begins: a root that came by another way than the repository itself."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from cvfs.errors import ConfigError
from cvfs.trust.names import MAX_ROOT_BYTES
from cvfs.trust.state import Trusted
from cvfs.trust.values import root_id

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")

FIRST_USE = "on first use"


class Anchor(msgspec.Struct, frozen=True):
    """The root with this SHA-256, and its bytes if they are at hand; `first_use`: whatever root is met first.

    `name` is what the repository must be called, None if nobody has said. `origin` says for people whence this is.
    """

    origin: str = ""
    root: bytes | None = None
    sha256: str | None = None
    first_use: bool = False
    name: str | None = None

    @property
    def is_empty(self) -> bool:
        """Nobody has said where trust begins: only what was trusted before can be."""
        return self.sha256 is None and not self.first_use

    def admits(self, trusted: Trusted) -> bool:
        """Whether a state that was trusted before begins here."""
        if self.name is not None and trusted.repository != self.name:
            return False
        return self.sha256 is None or self.sha256 in trusted.root_ids


def find_anchor(
    url: str,
    directories: Sequence[Path],
    *,
    root: Path | None = None,
    sha256: str | None = None,
    first_use: bool = False,
    name: str | None = None,
) -> Anchor:
    """The anchor for the repository at `url`: what the user says, else NAME.root.json in one of `directories`.

    NAME is `name`, else the last part of the address's path, else its host: software.example.org for
    http://software.example.org and http://mirror/software.example.org. The repository must then have that name.
    Raises ConfigError: an anchor that cannot be used, or more than one.
    """
    if (root is not None) + (sha256 is not None) + first_use > 1:
        raise ConfigError("use one of --root, --root-sha256 and --trust-on-first-use")
    if root is not None:
        return _of_file(root, name)
    if sha256 is not None:
        return Anchor(f"SHA-256 {_check_sha256(sha256)}", sha256=sha256.lower(), name=name)
    for candidate in (name,) if name else _names_of(url):
        for directory in directories:
            path = directory / f"{candidate}.root.json"
            if path.exists():
                return _of_file(path, candidate)
    return Anchor(FIRST_USE if first_use else "", first_use=first_use, name=name)


def _of_file(path: Path, name: str | None) -> Anchor:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_ROOT_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read the root of trust {path}: {error.strerror}") from error
    if not data.lstrip().startswith(b"{"):
        raise ConfigError(f"{path} is not a root.json")
    return Anchor(f"file {path}", data, root_id(data), name=name)


def _check_sha256(text: str) -> str:
    if not _SHA256.fullmatch(text.lower()):
        raise ConfigError(f"not a SHA-256 in hexadecimal: {text!r}")
    return text.lower()


def _names_of(url: str) -> list[str]:
    """What a repository at this address may be called. No name can leave the directory that it is looked for in."""
    parts = urlsplit(url)
    last = unquote(parts.path.rstrip("/").rpartition("/")[2])
    return [name for name in (last, parts.hostname or "") if _NAME.fullmatch(name)]
