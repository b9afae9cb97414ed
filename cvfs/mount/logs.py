"""Where a mount's log goes: one line an event, to the journal or to a file; and what went wrong lately, in memory."""

import json
import logging
import os
import re
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple, TextIO

_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_RECENT = 50
_TEXT_CHARACTERS = 400
"""Each of which may take six bytes in JSON, of 160 KiB for all."""

_MOST_ERRORS = 10_000

_BURST = 20
_REPEATS = 5
_BURST_S = 60.0
"""A place in the code logs `_BURST` lines in this time, then none: what fails for each request is a line each time. Of
them `_REPEATS` in a row may be the same: a program that tries one thing again and again hides nobody else's failure."""


class Event(NamedTuple):
    """A warning or an error, at `time_s` since 1970."""

    time_s: float
    level: str
    message: str


class RecentWarnings(logging.Handler):
    """Holds the last warnings and errors, and counts them. From any thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._events: deque[Event] = deque(maxlen=_RECENT)
        self.warnings = self.errors = 0
        self._errors_at: deque[float] = deque(maxlen=_MOST_ERRORS)

    @property
    def events(self) -> list[Event]:
        """A copy, made in one step: what is logged while somebody goes through the original would be an error there."""
        return list(self._events)

    def texts(self) -> list[str]:
        """What they say, cut so that all together are a message from one process to another."""
        return [event.message[:_TEXT_CHARACTERS] for event in self.events]

    def emit(self, record: logging.LogRecord) -> None:
        self._events.append(Event(record.created, record.levelname.lower(), record.getMessage()))
        if record.levelno >= logging.ERROR:
            self.errors += 1
            self._errors_at.append(record.created)
        else:
            self.warnings += 1

    def errors_since(self, time_s: float) -> int:
        """Errors after `time_s`, up to some thousands."""
        return sum(at >= time_s for at in list(self._errors_at))


class _Place:
    """A place in the code since `began_at`: how many lines were written, and were not; the last, how often in a row."""

    __slots__ = ("began_at", "left_out", "line", "repeats", "written")

    def __init__(self, began_at: float, line: str) -> None:
        self.began_at, self.line = began_at, line
        self.written = self.repeats = 1
        self.left_out = 0


class Moderation:
    """Lets no place in the code write more than `_BURST` lines in `_BURST_S`; the next line says how many were not."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, int], _Place] = {}

    def admit(self, record: logging.LogRecord) -> logging.LogRecord | None:
        """What to write instead of `record`, which other handlers have too; None for nothing."""
        where, line = (record.pathname, record.lineno), record.getMessage()
        place = self._places.get(where)
        if place is None or not 0 <= record.created - place.began_at < _BURST_S:  # a clock may be set back
            self._places[where] = _Place(record.created, line)
            return _with_note(record, place.left_out) if place and place.left_out else record
        place.repeats = place.repeats + 1 if line == place.line else 1
        place.line = line
        if place.repeats > _REPEATS or place.written == _BURST:
            place.left_out += 1
            return None
        place.written += 1
        return record


class _Moderated(logging.StreamHandler[TextIO]):
    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._moderation = Moderation()

    def emit(self, record: logging.LogRecord) -> None:
        admitted = self._moderation.admit(record)
        if admitted is not None:
            super().emit(admitted)


def _with_note(record: logging.LogRecord, count: int) -> logging.LogRecord:
    noted = logging.makeLogRecord(record.__dict__)
    noted.msg, noted.args = f"{record.getMessage()} (and {count} like it that were not logged)", ()
    return noted


class _OneLine(logging.Formatter):
    """Whatever a message or a traceback has of line ends and control characters is written so that it is one line."""

    def format(self, record: logging.LogRecord) -> str:
        text = " | ".join(line for line in super().format(record).splitlines() if line.strip())
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Json(logging.Formatter):
    """An object a line; a traceback is one text in it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time_s": round(record.created, 3),
            "level": record.levelname.lower(),
            "pid": record.process,
            "from": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class _Journal(logging.Formatter):
    """With the priority in front, as sd-daemon(3) has it; the journal adds the time itself."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return f"<{priority}>{self._inner.format(record)}"


def setup_logging(log_format: str = "text") -> RecentWarnings:
    """Log to standard error, which is a file, the journal or a terminal, as "text" or "json"."""
    handler = _Moderated(sys.stderr)
    handler.setFormatter(_formatter(log_format))
    recent = RecentWarnings()
    logging.basicConfig(level=logging.INFO, handlers=[handler, recent], force=True)
    return recent


def _formatter(log_format: str) -> logging.Formatter:
    plain: logging.Formatter = _Json() if log_format == "json" else _OneLine("%(message)s")
    if is_journal():
        return _Journal(plain)
    if log_format == "json":
        return plain
    formatter = _OneLine("%(asctime)s %(process)d %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    return formatter


def is_journal() -> bool:
    """Whether standard error is connected to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def log_name(directory: Path) -> str:
    """The name of the log of the mount on `directory`: its path with dashes."""
    return (re.sub(r"[^A-Za-z0-9.]+", "-", str(directory)).strip("-.") or "root")[-120:] + ".log"
