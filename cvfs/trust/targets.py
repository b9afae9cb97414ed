"""What targets that have verified say, and what a timestamp says is ahead: read without python-tuf."""

import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cvfs.errors import FormatError, TrustError
from cvfs.format.documents import RefDocument
from cvfs.trust import names
from cvfs.trust.values import Ahead, SignedTarget


class _Custom(msgspec.Struct, frozen=True):
    blob: RefDocument


class _Hashes(msgspec.Struct, frozen=True):
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class _Target(msgspec.Struct, frozen=True):
    length: int
    hashes: _Hashes
    custom: _Custom


def find_target(targets: bytes, name: str, max_bytes: int) -> SignedTarget | None:
    """The target `name`, None if there is none. The signatures on `targets` have verified before.

    Read by the parser that python-tuf has: for it the signatures are right, so no other reading counts. Raises
    TrustError: it is not described as it must be, or larger than `max_bytes`.
    """
    found: Any = json.loads(targets)["signed"]["targets"].get(name)
    if found is None:
        return None
    try:
        target = msgspec.convert(found, _Target)
        blob = target.custom.blob.blob_ref()
    except (msgspec.ValidationError, FormatError) as error:
        raise TrustError(f"the targets do not say where {name} is: {error}") from error
    if not target.length == blob.plain_size <= max_bytes:
        raise TrustError(f"the targets say impossible things of {name}")
    return SignedTarget(blob, target.length, target.hashes.sha256)


class _AheadDocument(msgspec.Struct, frozen=True):
    targets: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    manifest: RefDocument
    root: RefDocument


class _Version(msgspec.Struct, frozen=True):
    version: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]


class _Signed(msgspec.Struct, frozen=True):
    meta: dict[str, _Version]
    ahead: _AheadDocument = msgspec.field(name=names.AHEAD_FIELD)


class _Timestamp(msgspec.Struct, frozen=True):
    signed: _Signed


def read_ahead(timestamp: bytes) -> Ahead | None:
    """What to ask for beside the snapshot; None if the timestamp, of which nothing has been verified, does not say."""
    try:
        signed = msgspec.json.decode(timestamp, type=_Timestamp).signed
        said = signed.ahead
        return Ahead(signed.meta["snapshot.json"].version, said.targets, said.manifest.blob_ref(), said.root.blob_ref())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, FormatError):
        return None
