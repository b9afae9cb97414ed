"""What the mounts of a host say of themselves, as Prometheus reads it (text format 0.0.4). Pure.

All names, units and meanings are in docs/operations.md. What a label can be is bounded: by what is mounted, by the
kernel's protocol, by the errors that there are, and by `MAX_REPOSITORIES`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from cvfs.mount.overview import FOREIGN, Status

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

MAX_REPOSITORIES: Final = 500
"""Of a mount of many: whoever may look for repositories in a domain can make up names."""

STATES: Final = ("ok", "offline", "expired", "failed", "dead", "unknown")

Labels = dict[str, str]


class _Metric(NamedTuple):
    """What is measured, and where a status has it: a path, whose last step may lead to a table with a `label`."""

    name: str
    path: str
    label: str = ""


_OF_MOUNTS: Final = (
    _Metric("cvfs_start_time_seconds", "started_s"),
    _Metric("cvfs_workers", "workers"),
    _Metric("cvfs_worker_restarts_total", "restarts"),
    _Metric("cvfs_requests_total", "requests", "opcode"),
    _Metric("cvfs_requests_waited_total", "requests_waited"),
    _Metric("cvfs_requests_failed_total", "requests_failed"),
    _Metric("cvfs_requests_interrupted_total", "requests_interrupted"),
    _Metric("cvfs_errors_total", "errors"),
    _Metric("cvfs_warnings_total", "warnings"),
    _Metric("cvfs_cache_used_bytes", "cache.used_bytes"),
    _Metric("cvfs_cache_limit_bytes", "cache.limit_bytes"),
    _Metric("cvfs_cache_free_bytes", "cache.free_bytes"),
    _Metric("cvfs_cache_evicted_bytes_total", "cache.evicted_bytes"),
)

_OF_REPOSITORIES: Final = (
    _Metric("cvfs_revision", "revision"),
    _Metric("cvfs_published_timestamp_seconds", "published_s"),
    _Metric("cvfs_trust_expires_timestamp_seconds", "trust.expires_s"),
    _Metric("cvfs_refreshes_total", "refreshes"),
    _Metric("cvfs_cache_hits_total", "fetcher.hits"),
    _Metric("cvfs_cache_misses_total", "fetcher.misses"),
    _Metric("cvfs_fetched_bytes_total", "fetcher.fetched_bytes"),
    _Metric("cvfs_packs_ahead_total", "fetcher.ahead"),
    _Metric("cvfs_uncached_total", "fetcher.uncached"),
    _Metric("cvfs_integrity_errors_total", "fetcher.integrity_errors"),
    _Metric("cvfs_transport_requests_total", "transport.requests"),
    _Metric("cvfs_transport_received_bytes_total", "transport.received_bytes"),
    _Metric("cvfs_transport_errors_total", "transport.errors", "error"),
)

_STATE: Final = "cvfs_state"

NAMES: Final = (_STATE, *(metric.name for metric in (*_OF_MOUNTS, *_OF_REPOSITORIES)))
"""All that there are."""


def exposition(mounts: Iterable[Status]) -> bytes:
    """The metrics of `mounts`, as `list_mounts` has them. Those of other users are left out."""
    samples: dict[str, list[str]] = {name: [] for name in NAMES}
    for status in mounts:
        if status["state"] != FOREIGN:
            for name, labels, value in _samples(status):
                samples[name].append(f"{name}{{{_written(labels)}}} {value!r}\n")
    return "".join(_family(name, lines) for name, lines in samples.items() if lines).encode()


def _family(name: str, lines: list[str]) -> str:
    kind = "counter" if name.endswith("_total") else "gauge"
    return f"# TYPE {name} {kind}\n" + "".join(lines)


def _samples(status: Status) -> Iterator[tuple[str, Labels, float]]:
    where = {"mountpoint": str(status["mountpoint"])}
    yield from _states(status, where)
    yield from _measured(_OF_MOUNTS, status, where)
    if "repositories" not in status:
        yield from _measured(_OF_REPOSITORIES, status, {**where, "repository": str(status.get("repository", ""))})
        return
    used = [each for each in status["repositories"] if each["state"] != "unused"]
    for each in used[:MAX_REPOSITORIES]:
        labels = {**where, "repository": each["name"]}
        yield from _states(each, labels)
        yield from _measured(_OF_REPOSITORIES, each, labels)


def _states(status: Status, labels: Labels) -> Iterator[tuple[str, Labels, float]]:
    for state in STATES:
        yield _STATE, {**labels, "state": state}, int(status["state"] == state)


def _measured(metrics: Iterable[_Metric], status: Status, labels: Labels) -> Iterator[tuple[str, Labels, float]]:
    for metric in metrics:
        found = _at(status, metric.path)
        table = found.items() if metric.label and isinstance(found, Mapping) else [("", found)]
        for key, value in table:
            if isinstance(value, int | float):  # what is not known yet, or by this engine, is left out
                yield metric.name, {**labels, metric.label: key} if metric.label else labels, value


def _at(status: Any, path: str) -> Any:
    for step in path.split("."):
        status = status.get(step) if isinstance(status, Mapping) else None
    return status


def _written(labels: Labels) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    text = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
