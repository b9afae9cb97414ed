"""Values of settings as TOML has them: to show them, and to write a file of one repository."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvfs.config.kinds import SIZE_OR_SHARE
from cvfs.config.settings import TABLE
from cvfs.errors import ConfigError


def write_line(name: str, value: Any) -> str:
    """The line of a TOML file that says so of a setting. Raises ConfigError if TOML has no form for it."""
    if TABLE[name].kind is SIZE_OR_SHARE and isinstance(value, float):
        return f'{name} = "{value * 100:.12g} %"'
    return f"{name} = {toml_of(value)}"


def toml_of(value: Any) -> str:
    """A value in TOML, which the setting's parser takes back. Raises ConfigError if TOML has no form for it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value).removesuffix(".0")
    if isinstance(value, str | os.PathLike):
        return _text(os.fspath(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(str(key))} = {toml_of(each)}" for key, each in value.items()) + "}"
    return "[" + ", ".join(map(toml_of, value)) + "]"


def _text(text: str) -> str:
    # JSON's texts are TOML's, but for DEL, and for the halves of characters that stand for bytes that are no UTF-8.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{text!r} is not UTF-8, as TOML has to be") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def write_file(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file of settings; it is there as a whole or not at all. Raises ConfigError."""
    write_atomically(path, "".join(f"{write_line(name, value)}\n" for name, value in values.items()).encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file, legible for everybody. Raises ConfigError."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                os.fchmod(descriptor, 0o644)
                file.flush()
                os.fsync(descriptor)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
