"""The chain of signatures from a trusted root to the manifest: python-tuf's rules, our own I/O and clock."""

import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root

from cvfs.errors import ConfigError, ExpiredError, StatusError, TrustError
from cvfs.limits import MAX_MANIFEST_BYTES
from cvfs.trust import names
from cvfs.trust.targets import find_target
from cvfs.trust.updater import FetcherInterface, Updater, UpdaterConfig
from cvfs.trust.values import Bundle, Chain, root_id

Fetch = Callable[[str, int], bytes]
"""(path below the store's root, most bytes) -> bytes. Raises StatusError if there is no such file, or any CvfsError."""

_MISSING = (403, 404, 410)
"""What servers say of a file that is not there; object stores say 403 to who may not list."""

_ROLES = ("timestamp", "snapshot", "targets")

_LIMITS = {
    "root": names.MAX_ROOT_BYTES,
    "timestamp": names.MAX_TIMESTAMP_BYTES,
    "snapshot": names.MAX_SNAPSHOT_BYTES,
    "targets": names.MAX_TARGETS_BYTES,
}


def follow(known: Bundle, fetch: Fetch, now_s: float) -> Chain:
    """The newest state that `fetch` has and that the root in `known`, which is trusted, leads to.

    What else is in `known` has verified before: nothing older is accepted, and what has not changed is not fetched.
    Nothing outside is changed. Blocks in `fetch`; uses a directory for the while.

    Raises TrustError if it does not verify, ExpiredError if all that is wrong is its age, ConfigError if that directory
    cannot be made or is full, which says nothing of what was fetched, and what `fetch` raises.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="cvfs-trust-") as scratch:
            return _follow(known, fetch, now_s, Path(scratch))
    except ExpiredMetadataError as error:
        raise ExpiredError(_one_line(error)) from error
    except (RepositoryError, DownloadError, ValueError, RecursionError) as error:
        raise TrustError(_one_line(error)) from error
    except OSError as error:
        raise ConfigError(f"cannot verify signatures without a temporary directory: {_one_line(error)}") from error


def _follow(known: Bundle, fetch: Fetch, now_s: float, scratch: Path) -> Chain:
    for role in _ROLES:
        if data := getattr(known, role):
            (scratch / f"{role}.json").write_bytes(data)
    updater = Updater(str(scratch), names.DIRECTORY, fetcher=_Fetcher(fetch), config=_config(), bootstrap=known.root)
    # The one private thing used: Updater takes the time of its creation, but the time is for the caller to say.
    updater._trusted_set.reference_time = datetime.fromtimestamp(now_s, UTC)
    updater.refresh()
    return _chain(known, scratch)


def _chain(known: Bundle, scratch: Path) -> Chain:
    found = Bundle(*((scratch / f"{role}.json").read_bytes() for role in ("root", *_ROLES)))
    signed: list[Any] = [Metadata.from_bytes(getattr(found, role)).signed for role in ("root", *_ROLES)]
    root, timestamp = signed[:2]
    before = Metadata.from_bytes(known.root).signed.version
    manifest = find_target(found.targets, names.MANIFEST, MAX_MANIFEST_BYTES)
    if manifest is None:
        raise TrustError(f"the targets do not have {names.MANIFEST}")
    history = (scratch / "root_history" / f"{number}.root.json" for number in range(before + 1, root.version + 1))
    return Chain(
        bundle=found,
        new_root_ids=tuple(root_id(path.read_bytes()) for path in history),
        repository=_name_in(root),
        root_version=root.version,
        timestamp_version=timestamp.version,
        expires_s=int(min(one.expires for one in signed).timestamp()),
        root_expires_s=int(root.expires.timestamp()),
        manifest=manifest,
    )


def _name_in(root: Root) -> str:
    name = root.unrecognized_fields.get(names.REPOSITORY_FIELD)
    if not isinstance(name, str):
        raise TrustError(f"not the root of a repository: it has no {names.REPOSITORY_FIELD}")
    return name


def _config() -> UpdaterConfig:
    return UpdaterConfig(
        max_root_rotations=names.MAX_ROOT_STEPS,
        root_max_length=_LIMITS["root"],
        timestamp_max_length=_LIMITS["timestamp"],
        snapshot_max_length=_LIMITS["snapshot"],
        targets_max_length=_LIMITS["targets"],
    )


class _Fetcher(FetcherInterface):
    """python-tuf's way to the network, which ends at the function that the caller gave."""

    def __init__(self, fetch: Fetch) -> None:
        self._source = fetch

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Never more than the limit: what a timestamp signs may say any length, and python-tuf would ask for it."""
        role = url.removesuffix(".json").rpartition("/")[2].rpartition(".")[2]
        try:
            return self._source(url, min(max_length, _LIMITS[role]))
        except StatusError as error:
            if error.status in _MISSING and url.endswith(".root.json"):
                raise DownloadHTTPError("no newer root", 404) from error
            raise

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise ConfigError(f"{url} is fetched otherwise")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
