"""What the workers of one mount have counted, together. Pure."""

from collections.abc import Iterable, Iterator, Mapping
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
_OF_REPOSITORIES: Final = ("fetcher", "transport")


def counts_of(status: Mapping[str, Any]) -> Counts:
    """What is counted in the status of one worker."""
    repositories = {name: _only(_OF_REPOSITORIES, each) for name, each in _repositories(status)}
    return {**_only(_OF_MOUNTS, status), "repositories": repositories}


def with_counts(status: dict[str, Any], others: Iterable[Counts]) -> dict[str, Any]:
    """`status`, in place, with what other workers of the mount have counted."""
    for counts in others:
        status |= _sum(_only(_OF_MOUNTS, status), _only(_OF_MOUNTS, counts))
        for name, each in _repositories(status):
            each |= _sum(_only(_OF_REPOSITORIES, each), counts["repositories"].get(name, {}))
    return status


def _repositories(status: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """By name; one that is mounted alone has none, and stands among the rest."""
    if "repositories" in status:
        yield from ((each["name"], each) for each in status["repositories"])
    else:
        yield "", status


def _only(names: Iterable[str], of: Mapping[str, Any]) -> Counts:
    return {name: of[name] for name in names if name in of}


def _sum(one: Counts, other: Counts) -> Counts:
    return {name: _plus(one.get(name), other.get(name)) for name in {**one, **other}}


def _plus(one: Any, other: Any) -> Any:
    if isinstance(one or other, dict):
        return _sum(one or {}, other or {})
    return (one or 0) + (other or 0)
