"""What the workers of one mount have counted, together. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

Counts = dict[str, Any]
"""Numbers, and tables of such, by name."""

_OF_MOUNTS: Final = (
    "requests",
    "requests_waited",
    "requests_failed",
    "requests_interrupted",
    "replies_refused",
    "errors",
    "errors_last_hour",
    "warnings",
)
_OF_CACHES: Final = ("evicted_bytes",)
_OF_REPOSITORIES: Final = ("fetcher", "transport")

_OF_THE_LIVING: Final = ("errors_last_hour", "active")
"""What goes down again: it ends with the worker. All else goes on, or who watches a sum would see it fall at a death,
take that for a new beginning, and count what the other workers have done once more."""

_ENDED: Final = ""


def counts_of(status: Mapping[str, Any]) -> Counts:
    """What is counted in the status of one worker."""
    repositories = {name: _only(_OF_REPOSITORIES, each) for name, each in _repositories(status)}
    cache = _only(_OF_CACHES, status.get("cache", {}))
    return {**_only(_OF_MOUNTS, status), "cache": cache, "repositories": repositories}


def add_counts(status: dict[str, Any], others: Iterable[Counts]) -> None:
    """Add what other workers of the mount have counted to the `status` of one."""
    for counts in others:
        _add(status, {**_only(_OF_MOUNTS, counts), "cache": counts.get("cache", {})})
        for name, each in _repositories(status):
            _add(each, counts["repositories"].get(name, {}))


class WorkerCounts:
    """The last that every worker of a mount has said of its counts, by worker; those that have ended are one."""

    def __init__(self, known: Mapping[str, Counts]) -> None:
        self.known: dict[str, Counts] = dict(known)

    def record(self, worker: str, counts: Counts) -> None:
        self.known[worker] = counts

    def others(self, worker: str) -> list[Counts]:
        """What all but one have counted."""
        return [counts for name, counts in self.known.items() if name != worker]

    def bury(self, is_alive: Callable[[str], bool]) -> None:
        """Keep what those have counted who have ended, together."""
        for worker in [name for name in self.known if name != _ENDED and not is_alive(name)]:
            _add(self.known.setdefault(_ENDED, {"repositories": {}}), _lasting(self.known.pop(worker)))


def _repositories(status: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """By name; one that is mounted alone has none, and stands among the rest."""
    if "repositories" in status:
        yield from ((each["name"], each) for each in status["repositories"])
    else:
        yield "", status


def _only(names: Iterable[str], of: Mapping[str, Any]) -> Counts:
    return {name: of[name] for name in names if name in of}


def _lasting(counts: Counts) -> Counts:
    repositories = {
        repository: {name: _without_the_living(table) for name, table in tables.items()}
        for repository, tables in counts["repositories"].items()
    }
    return {**_without_the_living(counts), "repositories": repositories}


def _without_the_living(counts: Counts) -> Counts:
    return {name: value for name, value in counts.items() if name not in _OF_THE_LIVING}


def _add(to: dict[str, Any], counts: Counts) -> None:
    """In place. What is missing on one side, or not known there (None), is nothing; an empty table stays a table."""
    for name, value in counts.items():
        if isinstance(value, dict):
            if not isinstance(to.get(name), dict):
                to[name] = {}
            _add(to[name], value)
        else:
            to[name] = (to.get(name) or 0) + (value or 0)
