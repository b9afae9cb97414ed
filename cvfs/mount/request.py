"""What a user asks for with `cvfs mount`."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from cvfs.config import Settings
from cvfs.config.kinds import SWITCH
from cvfs.config.settings import TABLE, Setting
from cvfs.errors import ConfigError
from cvfs.which import Which

FUSE_CONF = Path("/etc/fuse.conf")

_SETTERS: dict[str, dict[str, Any]] = {
    "nonempty": {"nonempty": True},
    "all": {"all": True},
    "invalidate=exact": {"invalidation": "exact"},
    "invalidate=epoch": {"invalidation": "epoch"},
}
_IGNORED = {"ro", "default_permissions", "noatime", "nodiratime", "relatime"} | {
    # These are for mount(8) and systemd.
    *("defaults", "auto", "noauto", "nofail", "_netdev", "user", "users", "nouser")
}
_REMOUNT = "remount"


class MountRequest(msgspec.Struct, frozen=True):
    """A mount of the repository at `url` on `directory`, an absolute path. The kernel lists it as one of `source`.

    Or, with `all`, of every repository that is configured; `options` are settings that go before the configuration.
    """

    url: str
    directory: Path
    settings: Settings
    invalidation: str = "auto"
    nonempty: bool = False
    source: str = ""
    all: bool = False
    options: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def revision(self) -> Which | None:
        """What is shown for ever instead of the newest revision."""
        return self.settings.which


def encode_request(request: MountRequest) -> str:
    """In JSON, for another process. Not msgspec's own, which refuses paths that are not UTF-8; here each byte that is
    not becomes half a character, as in Python's own texts."""
    return json.dumps(msgspec.to_builtins(request, enc_hook=os.fspath))


def decode_request(text: str) -> MountRequest:
    """Raises msgspec.ValidationError: it is not of `encode_request`."""
    return msgspec.convert(json.loads(text), type=MountRequest, str_keys=True, dec_hook=lambda kind, value: kind(value))


def settings_among(options: Iterable[str]) -> dict[str, Any]:
    """Those of the comma-separated words of mount(8) that are settings, as NAME=VALUE, NAME or noNAME; by name.

    What may be given several times is a list.
    """
    found: dict[str, Any] = {}
    for setting, value in filter(None, map(_as_setting, _words(options))):
        found[setting.name] = [*found.get(setting.name, ()), value] if setting.is_list else value
    return found


def _as_setting(word: str) -> tuple[Setting, str] | None:
    name, given, value = word.replace("-", "_", word.partition("=")[0].count("-")).partition("=")
    if name in TABLE:
        return TABLE[name], value if given else "true"
    denied = TABLE.get(name.removeprefix("no"))
    return (denied, "false") if denied is not None and denied.kind is SWITCH and not given else None


def _words(options: Iterable[str]) -> list[str]:
    return [word.strip() for text in options for word in text.split(",") if word.strip()]


def refuse_remount(options: Iterable[str]) -> None:
    """Raises ConfigError if the words of mount(8) mean a mount that is there."""
    if _REMOUNT in _words(options):
        what = "the options of a mount cannot be changed while it is there: unmount it, and mount it with others"
        raise ConfigError(f"{what} (cvfs reload has it served by new code)")


def is_of_all(options: Iterable[str]) -> bool:
    """Whether the words of mount(8) say that all repositories are to be mounted."""
    return "all" in _words(options)


def is_option(word: str) -> bool:
    """Whether a word of mount(8) means anything, or is known to mean nothing here."""
    return (
        word in _SETTERS
        or word in _IGNORED
        or word == _REMOUNT
        or word.startswith(("x-", "X-", "comment="))
        or _as_setting(word) is not None
    )


def apply_options(request: MountRequest, options: Iterable[str]) -> MountRequest:
    """`request` as the comma-separated words of mount(8) change it, the settings among them aside.

    Raises ConfigError for a word that means nothing.
    """
    for word in _words(options):
        if word in _SETTERS:
            request = msgspec.structs.replace(request, **_SETTERS[word])
        elif word == "rw":
            raise ConfigError("a cvfs mount is read-only: leave out -o rw")
        elif not is_option(word):
            raise ConfigError(f"unknown mount option {word!r}: known are {', '.join(sorted(_SETTERS))}, and settings")
    return request


def may_allow_other(conf: Path = FUSE_CONF) -> bool:
    """Whether this user may let others enter a mount: root, or any user if /etc/fuse.conf says so."""
    if os.geteuid() == 0:
        return True
    try:
        lines = conf.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)
