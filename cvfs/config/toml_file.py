"""One file of settings. Errors have its name and the line, which tomllib does not tell for values."""

import contextlib
import re
import tomllib
from pathlib import Path
from typing import Any

from cvfs.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any] | None:
    """What the file says; None if there is none. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_with_line(path, str(error))) from None


def _with_line(path: Path, text: str) -> str:
    """The parser's message, with the line where editors look for it."""
    match = re.search(r" \(at line (\d+), column \d+\)", text)
    return f"{path}:{match[1]}: {text.replace(match[0], '')}" if match else f"{path}: {text}"


def line_of(path: Path, key: str) -> int | None:
    """The line on which a key of the top level first stands; None if it cannot be found any more."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = path.read_text("utf-8").splitlines(keepends=True)
        candidate = re.compile(rf"[\s\[]*[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
        for index, line in enumerate(lines):
            if candidate.match(line) and _brings(lines, index, key):
                return index + 1
    return None


def _brings(lines: list[str], index: int, key: str) -> bool:
    """Whether the statement that begins with line `index` is what brings `key`: not a text over several lines, and not
    the key of another table, that only look like it."""
    before = _parse(lines[:index])
    if before is None or key in before:
        return False
    for end in range(index + 1, len(lines) + 1):
        after = _parse(lines[:end])
        if after is not None:
            return key in after
    return False


def _parse(lines: list[str]) -> dict[str, Any] | None:
    try:
        return tomllib.loads("".join(lines))
    except tomllib.TOMLDecodeError:
        return None
