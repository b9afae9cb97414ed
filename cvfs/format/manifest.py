"""The manifest: "revision R of repository N has this root page" (docs/format.md, section 7). Canonical JSON."""

import re
from itertools import pairwise
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cvfs.errors import FormatError
from cvfs.format import documents
from cvfs.format.documents import FORMAT, AncestorDocument, Count, RefDocument, encode_ancestor, encode_ref
from cvfs.limits import MAX_ANCESTORS, MAX_LEVEL, MAX_MANIFEST_BYTES
from cvfs.model import Ancestor, BlobRef, Manifest, Summary

MAX_MESSAGE_CHARACTERS = 4096

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)


class _Root(RefDocument, frozen=True):
    level: Annotated[int, Meta(ge=0, le=MAX_LEVEL)]


class _Format(msgspec.Struct, frozen=True):
    format: int
    features: list[str] = []


class _Document(msgspec.Struct, frozen=True):
    """Fields that are not named here are left alone: a later writer may add what an older reader can do without."""

    repository: Annotated[str, Meta(max_length=255)]
    revision: Count
    published_s: Count
    root: _Root
    entries: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    size_bytes: Count
    parent: RefDocument | None = None
    message: Annotated[str, Meta(max_length=MAX_MESSAGE_CHARACTERS)] = ""
    ancestors: Annotated[list[AncestorDocument], Meta(max_length=MAX_ANCESTORS)] = []


def check_repository_name(name: str) -> None:
    """Raise FormatError unless `name` can be a repository's: lower-case letters, digits, "-", ".", as a host name."""
    if not _NAME.fullmatch(name) or len(name) > 255:
        raise FormatError(f"not a repository name: {name!r} (want one like software.example.org)")


def check_message(message: str) -> None:
    """Raise FormatError unless `message` can be a revision's."""
    if len(message) > MAX_MESSAGE_CHARACTERS:
        raise FormatError(f"a message of {len(message)} characters: at most {MAX_MESSAGE_CHARACTERS}")
    try:
        message.encode()
    except UnicodeEncodeError as error:
        raise FormatError("the message is not text in UTF-8") from error


def decode_manifest(data: bytes) -> Manifest:
    """The manifest that `data` says. Raises FormatError, also for a version or feature that is not known here."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise FormatError(f"a manifest of {len(data)} bytes is over the limit")
    _check_version(_parse(data, _Format))
    document: _Document = _parse(data, _Document)
    documents.check_json(data, "a manifest")
    check_repository_name(document.repository)
    root = document.root
    parent = None if document.parent is None else document.parent.blob_ref()
    ancestors = tuple(each.ancestor() for each in document.ancestors)
    _check_ancestors(ancestors, document, parent)
    return Manifest(
        repository=document.repository,
        revision=document.revision,
        published_s=document.published_s,
        root=root.blob_ref(),
        level=root.level,
        summary=Summary(document.entries, document.size_bytes),
        parent=parent,
        message=document.message,
        ancestors=ancestors,
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest: keys sorted, two spaces of indent, a newline at the end.

    Raises FormatError for what no reader would take: once it is signed, it cannot be taken back.
    """
    document: dict[str, Any] = {
        "format": FORMAT,
        "features": [],
        "repository": manifest.repository,
        "revision": manifest.revision,
        "published_s": manifest.published_s,
        "root": {**encode_ref(manifest.root), "level": manifest.level},
        "entries": manifest.summary.entries,
        "size_bytes": manifest.summary.size_bytes,
        "parent": None if manifest.parent is None else encode_ref(manifest.parent),
        "message": manifest.message,
        "ancestors": list(map(encode_ancestor, manifest.ancestors)),
    }
    data = documents.encode(document)
    decode_manifest(data)
    return data


def _parse(data: bytes, kind: Any) -> Any:
    return documents.parse(data, kind, "a manifest")


def _check_version(document: _Format) -> None:
    if document.format != FORMAT:
        raise FormatError(f"format version {document.format}; this cvfs reads version {FORMAT}")
    if document.features:
        raise FormatError(
            f"the repository needs features that this cvfs lacks: {', '.join(map(repr, document.features))[:200]}"
        )


def _check_ancestors(ancestors: tuple[Ancestor, ...], document: _Document, parent: BlobRef | None) -> None:
    """By number, all before the revision itself; none published after a later one; the last is the parent."""
    numbers = [*(each.revision for each in ancestors), document.revision]
    times = [*(each.published_s for each in ancestors), document.published_s]
    if any(one >= other for one, other in pairwise(numbers)) or any(one > other for one, other in pairwise(times)):
        raise FormatError("not a manifest: its ancestors are not in order")
    if ancestors and ancestors[-1].manifest != parent:
        raise FormatError("not a manifest: the last of its ancestors is not its parent")
