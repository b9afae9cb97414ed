"""The first questions to a mirror of which nothing is known yet: the pinned root, and what can be asked beside it.

One round trip where the root is at hand: its successor and the timestamp are asked for at the same time, while another
thread imports python-tuf.
"""

from dataclasses import dataclass, field
from importlib import import_module

import msgspec
import trio

from cvfs.errors import CvfsError, StatusError, TrustError
from cvfs.mirrors import Source
from cvfs.trust import names
from cvfs.trust.pin import Pin
from cvfs.trust.values import root_id


@dataclass(slots=True)
class Opening:
    """A root to begin with, and what came of questions that were asked early, by path: bytes, or the error.

    That the root is the pinned one is all that has been verified. `etag` is that of the timestamp.
    """

    root: bytes
    repository: str
    ahead: dict[str, bytes | CvfsError] = field(default_factory=dict)
    etag: str | None = None


async def open_source(source: Source, root: bytes | None, pin: Pin) -> Opening:
    """Begin with `root`, or if there is none yet, with the one that `pin` means and the source has.

    Raises TrustError if it does not have it, and what `Source.get` does. Cancelled: nothing is left behind.
    """
    root = await _find_root(source, pin) if root is None else root
    version, repository = _peek(root)
    opening = Opening(root, repository)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_import_chain)
        nursery.start_soon(_ask, source, names.TIMESTAMP, names.MAX_TIMESTAMP_BYTES, opening)
        successor = names.metadata_path("root", version + 1)
        nursery.start_soon(_ask, source, successor, names.MAX_ROOT_BYTES, opening)
    return opening


async def _import_chain() -> None:
    await trio.to_thread.run_sync(import_module, "cvfs.trust.chain")


async def _ask(source: Source, path: str, max_bytes: int, opening: Opening) -> None:
    try:
        response = await source.get(path, max_bytes=max_bytes)
    except CvfsError as error:
        opening.ahead[path] = error
        return
    opening.ahead[path] = response.data
    if path == names.TIMESTAMP:
        opening.etag = response.etag


async def _find_root(source: Source, pin: Pin) -> bytes:
    """The root with the pinned SHA-256, or the very first one if the first one met is to be trusted."""
    for version in range(1, names.MAX_ROOT_STEPS):
        try:
            path = names.metadata_path("root", version)
            root = (await source.get(path, max_bytes=names.MAX_ROOT_BYTES)).data
        except StatusError as error:
            if version == 1:
                raise
            raise TrustError(f"{source.url} has no root with the SHA-256 {pin.sha256}") from error
        if pin.first_use or root_id(root) == pin.sha256:
            return root
    raise TrustError(f"{source.url} has more roots than are followed, and none with the SHA-256 {pin.sha256}")


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
