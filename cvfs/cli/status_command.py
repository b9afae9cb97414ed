"""cvfs status."""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cvfs import terminal
from cvfs.cli import common

_COLUMNS = (
    *("MOUNTPOINT", "STATE", "REPOSITORY", "REVISION", "AGE", "SIGNED", "HITS", "CACHE", "WORKERS", "ERRORS/H"),
    *("MIRROR", "PROXY"),
)
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_NARROW = len(_COLUMNS) - 2
"""How many of them are shown where there is no room for all."""


@click.command("status", epilog="Example: cvfs status /mnt/software --json")
@click.argument("directory", type=Path, required=False)
@click.option("--json", "as_json", is_flag=True, help="All there is to know, as one JSON object.")
def command(directory: Path | None, as_json: bool) -> None:
    """Show all mounts, or all there is to know of the one on DIRECTORY, which may be that of a repository in a mount of
    all.

    The exit status is 0 if all is well, 1 if a mount is offline, expired, failed, dead, or does not answer. Failed is a
    mount of all where a repository cannot be opened. Mounts of other users are listed as foreign, and count only if
    they are asked for.
    """
    from cvfs.mount.overview import FOREIGN, list_mounts, mount_at

    runtime = common.find_runtime()
    mounts = list_mounts(runtime) if directory is None else [mount_at(directory.absolute(), runtime)]
    if as_json:
        terminal.print_json({"mounts": mounts})
    elif directory is not None:
        _print_details(mounts[0])
    elif mounts:
        _print_table([_COLUMNS, *(row for mount in mounts for row in _rows(mount))])
        _print_problems(mounts)
    else:
        click.echo("no mounts", err=True)
    fine = ("ok", FOREIGN) if directory is None else ("ok", "unused")
    if any(mount["state"] not in fine for mount in mounts):
        sys.exit(1)


def _rows(status: dict[str, Any]) -> list[Sequence[str]]:
    """A line for the mount; of many repositories, one as well for each that somebody has used."""
    whole = {**status, "url": ""} if "repositories" in status else status
    return [_row(whole), *(_row({"url": "?", **each}) for each in _used(status))]


def _used(status: dict[str, Any]) -> list[dict[str, Any]]:
    from cvfs.mount.overview import below

    return [each for each in below(status) if each["state"] != "unused"]


def _row(status: dict[str, Any]) -> Sequence[str]:
    now, trust, network = time.time(), status.get("trust", {}), status.get("network", {})
    return (
        status["mountpoint"],
        status["state"],
        status.get("repository", ""),
        str(status.get("revision", "")),
        _span(now - status["published_s"]) if "published_s" in status else "",
        _span(trust["expires_s"] - now) if "expires_s" in trust else "",
        _hit_ratio(status.get("fetcher", {})),
        _cache_use(status.get("cache", {})),
        f"{status['workers']}, {status['restarts']} lost" if status.get("restarts") else str(status.get("workers", "")),
        str(status.get("errors_last_hour", "")),
        network.get("mirror") or status.get("url", ""),
        network.get("proxy") or "",
    )


def _hit_ratio(fetcher: dict[str, int]) -> str:
    asked = fetcher["hits"] + fetcher["misses"] if fetcher else 0
    return f"{fetcher['hits'] / asked:.0%}" if asked else ""


def _cache_use(cache: dict[str, Any]) -> str:
    used, limit = cache.get("used_bytes"), cache.get("limit_bytes")
    text = f"{used / limit:.0%} of {terminal.show_size(limit)}" if used is not None and limit else ""
    return f"{text}, no room on disk".removeprefix(", ") if cache.get("gives_way") else text


def _span(span_s: float) -> str:
    """As people say it: 5 min, 3 h, -2 d."""
    unit_s, unit = next(each for each in _UNITS if abs(span_s) >= 2 * each[0] or each is _UNITS[-1])
    return f"{span_s / unit_s:.0f} {unit}"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """As wide as the terminal allows: first without mirrors and proxies, then a block of lines for each mount."""
    room = shutil.get_terminal_size((1000, 0)).columns
    for shown in (rows, [row[:_NARROW] for row in rows]):
        lines = _aligned(shown)
        if max(map(len, lines)) <= room:
            break
    else:
        lines = [line for row in rows[1:] for line in _block(row)]
    for line in lines:
        _print(line)


def _print(line: str) -> None:
    click.echo(common.printable(line.encode(errors="surrogateescape"), escape=True))


def _print_problems(mounts: Sequence[dict[str, Any]]) -> None:
    """Below the table, which has no room for them: why a mount, or a repository in it, is not well."""
    from cvfs.mount.overview import why

    for status in (each for mount in mounts for each in (_used(mount) or [mount])):
        if reason := why(status):
            _print(f"{status['mountpoint']}: {status['state']}: {reason}")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _block(row: Sequence[str]) -> list[str]:
    about = [f"  {name.capitalize():<11} {value}" for name, value in zip(_COLUMNS, row, strict=True) if value]
    return [row[0], *about[1:]]


def _print_details(status: dict[str, Any]) -> None:
    plain = {name: value for name, value in status.items() if name not in ("events", "repositories")}
    for name, value in _flat(plain):
        click.echo(f"{name + ':':<24} {value}")
    for event in status.get("events", ()):
        click.echo(f"{_date(event['time_s'])}  {event['level']}: {event['message']}")
    if "repositories" in status:
        used = _used(status)
        click.echo(f"{'repositories:':<24} {len(status['repositories'])}, {len(used)} in use")
        if used:
            _print_table([_COLUMNS, *_rows(status)[1:]])
            _print_problems([status])


def _flat(status: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values as they are shown; what is nested has names with dots, what is a list a line for each."""
    lines: list[tuple[str, str]] = []
    for name, value in status.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            lines += [(prefix + name, _in_a_line(each)) for each in value]
        elif name.endswith("_s") and name != "uptime_s":
            lines.append((prefix + name.removesuffix("_s"), _date(value)))
        elif name.endswith("_bytes") and value is not None:
            lines.append((prefix + name.removesuffix("_bytes"), terminal.show_size(value)))
        else:
            lines.append((prefix + name, str(value)))
    return lines


def _in_a_line(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{name} {each}" for name, each in value.items() if each not in ("", None))


def _date(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))
