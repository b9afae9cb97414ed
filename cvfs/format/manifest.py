"""The manifest: "revision R of repository N has this root page" (docs/format.md, section 7). Canonical JSON."""

import json
import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cvfs.errors import FormatError
from cvfs.format.blob import check_ref
from cvfs.limits import MAX_BLOB_BYTES, MAX_LEVEL, MAX_MANIFEST_BYTES
from cvfs.model import DIGEST_SIZE, BlobRef, Digest, Manifest, Summary

FORMAT = 1
"""The version of the format that this code reads and writes."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)
_Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_BlobSize = Annotated[int, Meta(ge=1, le=MAX_BLOB_BYTES)]


class _Ref(msgspec.Struct, frozen=True):
    id: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=2 * DIGEST_SIZE)]
    stored_size: _BlobSize
    plain_size: _BlobSize


class _Root(_Ref, frozen=True):
    level: Annotated[int, Meta(ge=0, le=MAX_LEVEL)]


class _Format(msgspec.Struct, frozen=True):
    format: int
    features: list[str] = []


class _Document(msgspec.Struct, frozen=True):
    """Fields that are not named here are left alone: a later writer may add what an older reader can do without."""

    repository: Annotated[str, Meta(max_length=255)]
    revision: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    published_s: _Count
    root: _Root
    entries: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    size_bytes: _Count
    parent: _Ref | None = None
    message: Annotated[str, Meta(max_length=4096)] = ""


def check_repository_name(name: str) -> None:
    """Raise FormatError unless `name` can be a repository's: lower-case letters, digits, "-", ".", as a host name."""
    if not _NAME.fullmatch(name) or len(name) > 255:
        raise FormatError(f"not a repository name: {name!r} (want one like software.example.org)")


def decode_manifest(data: bytes) -> Manifest:
    """The manifest that `data` says. Raises FormatError, also for a version or feature that is not known here."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise FormatError(f"a manifest of {len(data)} bytes is over the limit")
    _check_version(_parse(data, _Format))
    document = _parse(data, _Document)
    _check_json(data)
    check_repository_name(document.repository)
    root, parent = document.root, document.parent
    return Manifest(
        repository=document.repository,
        revision=document.revision,
        published_s=document.published_s,
        root=_blob_ref(root),
        level=root.level,
        summary=Summary(document.entries, document.size_bytes),
        parent=None if parent is None else _blob_ref(parent),
        message=document.message,
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest: keys sorted, two spaces of indent, a newline at the end."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "features": [],
        "repository": manifest.repository,
        "revision": manifest.revision,
        "published_s": manifest.published_s,
        "root": {**_json_ref(manifest.root), "level": manifest.level},
        "entries": manifest.summary.entries,
        "size_bytes": manifest.summary.size_bytes,
        "parent": None if manifest.parent is None else _json_ref(manifest.parent),
        "message": manifest.message,
    }
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _parse(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"not a manifest: {error}") from error


def _check_json(data: bytes) -> None:
    """Refuse what JSON leaves open and readers understand differently, unknown fields included: a key that stands
    twice in an object, and text that is not UTF-8."""
    try:
        json.loads(data.decode(), object_pairs_hook=_unique, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not a manifest: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise FormatError("not a manifest: a key stands twice in an object")
    return members


def _check_version(document: _Format) -> None:
    if document.format != FORMAT:
        raise FormatError(f"format version {document.format}; this cvfs reads version {FORMAT}")
    if document.features:
        raise FormatError(
            f"the repository needs features that this cvfs lacks: {', '.join(map(repr, document.features))[:200]}"
        )


def _blob_ref(ref: _Ref) -> BlobRef:
    blob = BlobRef(Digest(bytes.fromhex(ref.id)), ref.stored_size, ref.plain_size)
    check_ref(blob)
    return blob


def _json_ref(ref: BlobRef) -> dict[str, Any]:
    return {"id": ref.id.hex(), "stored_size": ref.stored_size, "plain_size": ref.plain_size}
