"""Questions to a mirror that are asked early: all that can be asked at once is.

Nothing that comes is verified here, nor looked at more than it takes to know what to ask next. Two round trips bring a
repository that nobody has met before: the successor of the pinned root and the timestamp; then what the timestamp says
comes next. Meanwhile another thread imports python-tuf.
"""

from collections.abc import Mapping
from importlib import import_module

import msgspec
import trio

from cvfs.errors import CvfsError, StatusError, TrustError
from cvfs.format.blob import blob_path
from cvfs.limits import MAX_MANIFEST_BYTES, MAX_PAGE_BYTES
from cvfs.mirrors import Source
from cvfs.trust import names
from cvfs.trust.anchor import Anchor
from cvfs.trust.targets import read_ahead
from cvfs.trust.values import root_id

EarlyAnswers = Mapping[str, bytes | CvfsError]
"""What came of questions that were asked early, by path: bytes, or the error."""


class Opening(msgspec.Struct):
    """A root to begin with, and early answers. That the root is the pinned one is all that has been verified."""

    root: bytes
    repository: str
    early: dict[str, bytes | CvfsError] = msgspec.field(default_factory=dict)
    etag: str | None = None
    """Of the timestamp."""


async def open_source(source: Source, root: bytes | None, anchor: Anchor) -> Opening:
    """Begin with `root`, or if there is none yet, with the one that `anchor` means and the source has.

    Raises TrustError if it does not have it, and what `Source.get` does. Cancelled: nothing is left behind.
    """
    root = await _find_root(source, anchor) if root is None else root
    version, repository = _peek(root)
    opening = Opening(root, repository)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_import_chain)
        nursery.start_soon(_ask_timestamp, source, opening)
        nursery.start_soon(_ask, source, names.metadata_path("root", version + 1), names.MAX_ROOT_BYTES, opening.early)
    return opening


async def ask_ahead(source: Source, timestamp: bytes, root_version: int, known: bytes) -> EarlyAnswers:
    """Early answers to what will be asked for in order to get from the state of the timestamp `known` and a root of
    that version to the state of `timestamp`. Cancelled: nothing is left behind."""
    early: dict[str, bytes | CvfsError] = {names.TIMESTAMP: timestamp}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_ask, source, names.metadata_path("root", root_version + 1), names.MAX_ROOT_BYTES, early)
        _follow_hint(source, timestamp, known, early, nursery)
    return early


async def _ask_timestamp(source: Source, opening: Opening) -> None:
    path = names.TIMESTAMP
    try:
        response = await source.get(path, max_bytes=names.MAX_TIMESTAMP_BYTES)
    except CvfsError as error:
        opening.early[path] = error
        return
    opening.early[path], opening.etag = response.data, response.etag
    async with trio.open_nursery() as nursery:
        _follow_hint(source, response.data, b"", opening.early, nursery)


def _follow_hint(
    source: Source, timestamp: bytes, known: bytes, early: dict[str, bytes | CvfsError], nursery: trio.Nursery
) -> None:
    """Ask for what `timestamp` says comes next, unless `known` says the same: it is here then."""
    said = read_ahead(timestamp)
    if said is None or said == read_ahead(known):
        return
    sizes = {
        names.metadata_path("snapshot", said.snapshot): names.MAX_SNAPSHOT_BYTES,
        names.metadata_path("targets", said.targets): names.MAX_TARGETS_BYTES,
        blob_path(said.manifest.id): min(said.manifest.stored_size, MAX_MANIFEST_BYTES),
        blob_path(said.root.id): min(said.root.stored_size, MAX_PAGE_BYTES),
    }
    for path, max_bytes in sizes.items():
        nursery.start_soon(_ask, source, path, max_bytes, early)


async def _import_chain() -> None:
    await trio.to_thread.run_sync(import_module, "cvfs.trust.chain")


async def _ask(source: Source, path: str, max_bytes: int, early: dict[str, bytes | CvfsError]) -> None:
    try:
        early[path] = (await source.get(path, max_bytes=max_bytes)).data
    except CvfsError as error:
        early[path] = error


async def _find_root(source: Source, anchor: Anchor) -> bytes:
    """The root with the pinned SHA-256, or the very first one if the first one met is to be trusted.

    A server that has something for every path must not be asked for all the roots that there could be.
    """
    for version in range(1, names.MAX_ROOT_STEPS):
        try:
            path = names.metadata_path("root", version)
            root = (await source.get(path, max_bytes=names.MAX_ROOT_BYTES)).data
        except StatusError as error:
            if version == 1:
                raise
            raise TrustError(f"{source.url} has no root with the SHA-256 {anchor.sha256}") from error
        check_not_a_web_page(root, source.url, path)
        found, _ = _peek(root)
        if found != version:
            raise TrustError(f"{source.url} has version {found} of the root as {path}")
        if anchor.first_use or root_id(root) == anchor.sha256:
            return root
    raise TrustError(f"{source.url} has more roots than are followed, and none with the SHA-256 {anchor.sha256}")


def check_not_a_web_page(data: bytes, url: str, path: str) -> None:
    """Raises TrustError: what came from the mirror at `url` is for people."""
    if data.lstrip()[:1] == b"<":
        raise TrustError(f"no repository at {url}: it serves a web page (HTML or XML) instead of {path}")


class _Signed(msgspec.Struct):
    version: int
    repository: str = msgspec.field(default="", name=names.REPOSITORY_FIELD)


class _Root(msgspec.Struct):
    signed: _Signed


def _peek(root: bytes) -> tuple[int, str]:
    """What a root says of its version and repository, before its signatures are looked at: it is the pinned one."""
    try:
        signed = msgspec.json.decode(root, type=_Root).signed
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TrustError(f"not a root.json: {error}") from error
    return signed.version, signed.repository
