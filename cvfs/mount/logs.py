"""Where a mount's log goes: one line an event, to the journal or to a file; and what went wrong lately, in memory."""

import logging
import os
import re
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_RECENT = 50


@dataclass(frozen=True, slots=True)
class Event:
    """A warning or an error, at `time_s` since 1970."""

    time_s: float
    level: str
    message: str


class Recent(logging.Handler):
    """Holds the last warnings and errors, and counts them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.events: deque[Event] = deque(maxlen=_RECENT)
        self.warnings = self.errors = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append(Event(record.created, record.levelname.lower(), record.getMessage()))
        if record.levelno >= logging.ERROR:
            self.errors += 1
        else:
            self.warnings += 1

    def errors_since(self, time_s: float) -> int:
        """Errors after `time_s`, as far as they are still held."""
        return sum(event.time_s >= time_s and event.level == "error" for event in self.events)


class _OneLine(logging.Formatter):
    """Whatever a message or a traceback has of line ends and control characters is written so that it is one line."""

    def format(self, record: logging.LogRecord) -> str:
        text = " | ".join(line for line in super().format(record).splitlines() if line.strip())
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Journal(_OneLine):
    """With the priority in front, as sd-daemon(3) has it; the journal adds the time itself."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return f"<{priority}>{super().format(record)}"


def setup_logging() -> Recent:
    """Log to standard error, which is a file, the journal or a terminal."""
    handler = logging.StreamHandler(sys.stderr)
    if is_journal():
        handler.setFormatter(_Journal("%(message)s"))
    else:
        formatter = _OneLine("%(asctime)s %(process)d %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
    recent = Recent()
    logging.basicConfig(level=logging.INFO, handlers=[handler, recent], force=True)
    return recent


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
