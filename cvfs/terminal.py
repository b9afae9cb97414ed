"""What both command lines share: errors in one line, sizes and times for people, results on stdout alone."""

import errno
import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from cvfs.errors import CvfsError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

BROKEN_PIPE = 141
"""Exit status when the reader of the results has gone, as shells have it."""

if TYPE_CHECKING:
    from rich.console import Console

    console: Console
    """For everything that is not a result: progress, notices."""
else:

    def __getattr__(name: str) -> Any:
        """Make `console` when it is first used: rich takes longer to import than most commands to run."""
        if name != "console":
            raise AttributeError(name)
        from rich.console import Console

        made = globals()["console"] = Console(stderr=True, highlight=False)
        return made


def run(command: click.Command, program: str, arguments: list[str] | None = None, given: object = None) -> NoReturn:
    """Run a command line to its exit. Whatever a user can do wrong ends as one line on stderr.

    `arguments` are those of the process if they are not given. Commands get `given` as the object of their context.

    Exit status: 0 success, 1 an error, 2 wrong usage, 130 interrupted, 141 the reader of the results has gone.
    """
    _print_any_path()
    try:
        try:
            status = command.main(arguments, prog_name=program, standalone_mode=False, obj=given)
        finally:
            sys.stdout.flush()  # while what is wrong can still be told
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.UsageError as error:
        error.show()
        status = error.exit_code
    except click.ClickException as error:
        status = _fail(program, error.format_message())
    except _UnwrittenError as error:
        _drop(sys.stdout)
        status = BROKEN_PIPE if error.has_no_reader else _fail(program, str(error))
    except CvfsError as error:
        status = _fail(program, str(error))
    except OSError as error:
        status = _fail(program, _describe(error))
    except (KeyboardInterrupt, click.Abort):
        status = _fail(program, "interrupted", INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


class _UnwrittenError(Exception):
    """Results could not be written. It is no OSError: for a reader that has gone click has a status of its own."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror}")
        self.has_no_reader = isinstance(error, BrokenPipeError)


class _Output(io.FileIO):
    """Standard output. What it refuses is told as such, whoever writes, text or bytes."""

    def write(self, data: Any, /) -> int:
        """Raises _UnwrittenError."""
        try:
            return super().write(data)
        except OSError as error:
            raise _UnwrittenError(error) from error


def _print_any_path() -> None:
    """A path that is not UTF-8 comes out as it is, as it would in the C locale: by default Python refuses."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        buffer = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(buffer, stream.encoding, "surrogateescape", line_buffering=stream.line_buffering)


def _drop(stream: TextIO) -> None:
    """What is still to be flushed is not missed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _describe(error: OSError) -> str:
    """In words, and with what it is about: Python's own text begins with a number."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {reason}"
    if error.errno == errno.ENOENT and not _has_directory():
        return "the current directory is gone: go to one that is there"
    return reason


def _has_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _fail(program: str, text: str, status: int = 1) -> int:
    line = " ".join(text.split())
    try:
        click.echo(f"{program}: error: {line}", err=True)
    except OSError:  # nobody can be told
        _drop(sys.stderr)
    return status


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def show_size(size_bytes: int) -> str:
    """As people say it: 512 bytes, 1.5 MiB."""
    if size_bytes < 1024:
        return f"{size_bytes} byte{'' if size_bytes == 1 else 's'}"
    size = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1023.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def show_count(number: int, what: str, plural: str = "") -> str:
    """1 file, 28,000 files."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def escape(text: str) -> str:
    """`text` in one line of printable characters; no two texts become the same.

    What is not printable becomes what it is in a Python string, and so does the backslash. A byte that is no UTF-8, as
    os.fsdecode has it, becomes \\xNN.
    """
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable() and character != "\\":
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    if "\x80" <= character <= "\xff":
        return f"\\u{ord(character):04x}"  # not \\x85, which is a byte that is no UTF-8
    return character.encode("unicode_escape").decode("ascii")
