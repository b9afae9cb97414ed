"""cvfs cache."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cvfs import terminal
from cvfs.cli import common
from cvfs.errors import CacheError, ConfigError
from cvfs.terminal import show_count, show_size

if TYPE_CHECKING:
    from cvfs.cache import Cache

_KINDS = {
    "objects": "small files",
    "large": "large files",
    "packs": "small files, packed",
    "blobs": "pages of metadata",
}

cache_options = common.setting_options("cache", "cache_limit", "keep_free")


@click.group("cache", epilog="Example: cvfs cache info")
def command() -> None:
    """Look at this user's cache, check it, shrink it, keep things in it. All is safe while mounts are in use."""


@command.command("info", epilog="Example: cvfs cache info --json")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@cache_options
def info(as_json: bool) -> None:
    """Show what is in the cache, what it may take, and how often mounts found there what they needed."""
    with _opened() as cache:
        with contextlib.suppress(CacheError):  # it may be read-only: then what was counted before is shown
            cache.quota.recount()
        report = _info(cache)
    if as_json:
        terminal.print_json(report)
        return
    for name, value in _lines(report):
        click.echo(f"{name + ':':<20} {value}")


def _info(cache: "Cache") -> dict[str, Any]:
    from cvfs.cache.shards import disk_bytes, list_all

    files = {kind: list(list_all(cache.directory.path, kind)) for kind in _KINDS}
    return {
        "directory": str(cache.directory.path),
        **cache.quota.use().shown(),
        **{kind: {"files": len(found), "bytes": disk_bytes(found)} for kind, found in files.items()},
        "pins": cache.quota.pins.all(),
        **_hits(),
    }


def _hits() -> dict[str, int]:
    """What the mounts of this user have counted since they began."""
    from cvfs.mount.overview import list_mounts
    from cvfs.mount.runtime import Runtime

    mounts = list_mounts(Runtime(common.host_settings().runtime))
    counters = [each.get("fetcher", {}) for mount in mounts for each in mount.get("repositories", [mount])]
    return {name: sum(each.get(name, 0) for each in counters) for name in ("hits", "misses")}


def _lines(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from cvfs.cli.pinning import pin_disk_bytes

    yield "directory", report["directory"]
    used, limit = report["used_bytes"], report["limit_bytes"]
    yield "used", f"{_size(used)} of {show_size(limit)}" + (f" ({used * 100 / limit:.0f} %)" if used and limit else "")
    for kind, what in _KINDS.items():
        found = report[kind]
        yield what, f"{show_size(found['bytes'])} in {show_count(found['files'], 'file')}"
    free, kept = report["free_bytes"], report["keep_free_bytes"]
    if report["gives_way"]:
        yield "free on its disk", f"{show_size(free)}, less than the {show_size(kept)} that are left to others"
        yield "problem", "nothing more is cached: free some of its disk, or lower keep_free"
    else:
        yield "free on its disk", f"{show_size(free)}, of which {show_size(kept)} are left to others"
    asked = report["hits"] + report["misses"]
    yield "hits", f"{report['hits'] * 100 / asked:.1f} % of {asked:,}" if asked else "nothing was asked for yet"
    for pin in report["pins"]:
        what = terminal.escape(f"{pin['path'] or '/'} of {pin['repository']}")  # a publisher has named them
        yield "pinned", f"{what}: {show_size(pin_disk_bytes(pin))}"


def _size(size_bytes: int | None) -> str:
    return "an unknown part" if size_bytes is None else show_size(size_bytes)


@command.command("verify", epilog="Example: cvfs cache verify")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, and nothing to say if all is well.")
@click.option("--json", "as_json", is_flag=True, help="The outcome as JSON.")
@cache_options
def verify(quiet: bool, as_json: bool) -> None:
    """Read and hash everything in the cache, and remove what is damaged: it is fetched again when it is needed.

    The exit status is 1 if anything was damaged. Nobody who reads gets damaged bytes without this, either.
    """
    from cvfs.cache.verify import Verifier

    with _opened() as cache, _bar("Verifying", _total(cache), quiet=quiet or as_json) as report:
        result = Verifier(cache, report).run()
    if as_json:
        terminal.print_json({name: getattr(result, name) for name in result.__slots__})
    elif not (quiet and result.is_sound):
        click.echo(f"{show_count(result.files, 'file')}, {show_size(result.size_bytes)}: {_outcome(result)}")
    if not result.is_sound:
        sys.exit(1)


def _outcome(result: Any) -> str:
    parts = []
    if result.removed:
        parts.append(f"{show_count(result.removed, 'damaged file')} removed")
    if result.blanked_chunks:
        parts.append(f"{show_count(result.blanked_chunks, 'damaged piece')} of large files blanked out")
    if result.unknown:
        parts.append(f"{show_count(result.unknown, 'large file')} not checked, as no metadata speaks of them")
    return ", ".join(parts or ["all well"])


def _total(cache: "Cache") -> int:
    from cvfs.cache.shards import count

    return sum(count(cache.directory.path))


@contextlib.contextmanager
def _bar(doing: str, total_bytes: int, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda files, size_bytes: None
        return
    from cvfs.progress import progress_bar

    with progress_bar(doing) as bar:
        bar.expect(total_bytes)
        yield bar.show


@command.command("gc", epilog="Example: cvfs cache gc --to '5 GB'")
@click.option("--to", "target", metavar="SIZE", help="Shrink to this size [default: to the limit].")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
@cache_options
def gc(target: str | None, quiet: bool) -> None:
    """Shrink the cache, the least recently used first; what is pinned, in use or needed by mounts stays.

    Mounts do that by themselves when the limit is reached.
    """
    wanted = None if target is None else _parse_size(target)
    with _opened() as cache:
        before = _used(cache)
        cache.quota.evict_to(cache.quota.use().limit_bytes if wanted is None else wanted)
        after = _used(cache)
    if wanted is not None and after > wanted:
        raise CacheError(f"{show_size(after)} are left, not {show_size(wanted)}: pinned, in use, or needed by mounts")
    if not quiet:
        click.echo(f"{show_size(max(0, before - after))} freed, {show_size(after)} left")


def _used(cache: "Cache") -> int:
    sums = cache.quota.recount()
    if sums is None:
        raise CacheError("the cache is being counted by another process: try again in a moment")
    return sums.total


def _parse_size(text: str) -> int:
    from cvfs.config import kinds

    try:
        if "%" in text:
            raise ValueError
        return int(kinds.SIZE_OR_SHARE.parse(text, Path()))
    except ValueError:
        raise ConfigError(f"--to: wanted bytes or a text like '5 GB', not {text!r}") from None


@command.command("wipe", epilog="Example: cvfs cache wipe --yes")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@cache_options
def wipe(yes: bool) -> None:
    """Remove everything from the cache, also what is pinned. Mounts go on, and fetch again what they need.

    Pins remain: what comes back is pinned again.
    """
    with _opened() as cache:
        question = f"Remove {show_size(_used(cache))} from {cache.directory.path}?"
        if not (yes or click.confirm(question, err=True)):
            click.echo("nothing was removed", err=True)
            sys.exit(1)
        freed = cache.quota.wipe()
    click.echo(f"{show_size(freed)} freed")


@command.command("pin", epilog="Example: cvfs cache pin http://software.example.org lib/python3.11")
@click.argument("url")
@click.argument("paths", metavar="PATH...", nargs=-1)
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, no summary.")
@common.storage_options
@common.setting_options("cache_limit", "keep_free")
def pin(url: str, paths: tuple[str, ...], quiet: bool) -> None:
    """Bring PATH... (default: all) of the repository at URL into the cache, and keep it there whatever happens.

    URL may also be a path below a mount, with other such paths following. What is pinned is the content of now: after a
    new revision, pin again, which lets go of what is not in it any more.
    """
    from cvfs.cli.pinning import pin_paths

    pin_paths(url, paths, quiet=quiet)


@command.command("unpin", epilog="Example: cvfs cache unpin http://software.example.org lib/python3.11")
@click.argument("url")
@click.argument("paths", metavar="PATH...", nargs=-1)
@common.storage_options
def unpin(url: str, paths: tuple[str, ...]) -> None:
    """Let PATH... (default: all, pinned as such) of the repository at URL be evicted again. See `cvfs cache info`."""
    from cvfs.cli.pinning import unpin_paths

    unpin_paths(url, paths)


@contextlib.contextmanager
def _opened() -> Iterator["Cache"]:
    from cvfs.cache import Cache
    from cvfs.cache.space import Limits

    common.setup_quiet_logging()
    settings = common.host_settings()
    limits = Limits(settings.cache_limit, settings.keep_free).check()
    with contextlib.closing(Cache(settings.cache, limits)) as cache:
        yield cache
