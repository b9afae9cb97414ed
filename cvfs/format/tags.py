"""Tags: names for revisions, in one document that is signed as the manifest is (docs/format.md, section 7)."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cvfs.errors import FormatError
from cvfs.format import documents
from cvfs.format.documents import FORMAT, AncestorDocument, encode_ancestor
from cvfs.limits import MAX_TAG_NAME_CHARACTERS, MAX_TAGS, MAX_TAGS_BYTES
from cvfs.model import Ancestor

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*", re.ASCII)

Tags = Mapping[str, Ancestor]
"""Name: the revision that it means."""


class _Format(msgspec.Struct, frozen=True):
    format: int


class _Document(msgspec.Struct, frozen=True):
    tags: Annotated[dict[str, AncestorDocument], Meta(max_length=MAX_TAGS)]


def check_tag_name(name: str) -> None:
    """Raise FormatError unless `name` can be a tag's: letters, digits, ".", "_", "+", "-"; not digits alone."""
    if not _NAME.fullmatch(name) or name.isdigit() or len(name) > MAX_TAG_NAME_CHARACTERS:
        wanted = f"letters, digits, . _ + -, at most {MAX_TAG_NAME_CHARACTERS}, not digits alone"
        raise FormatError(f"not the name of a tag: {name[:100]!r} ({wanted})")


def decode_tags(data: bytes) -> Tags:
    """The tags that `data` says, by name. Raises FormatError."""
    if len(data) > MAX_TAGS_BYTES:
        raise FormatError(f"tags of {len(data)} bytes are over the limit")
    if documents.parse(data, _Format, "tags").format != FORMAT:
        raise FormatError(f"tags of another format than {FORMAT}")
    document: _Document = documents.parse(data, _Document, "tags")
    documents.check_json(data, "tags")
    for name in document.tags:
        check_tag_name(name)
    return {name: each.ancestor() for name, each in sorted(document.tags.items())}


def encode_tags(tags: Tags) -> bytes:
    """Raises FormatError: too many."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "tags": {name: encode_ancestor(each) for name, each in tags.items()},
    }
    data = documents.encode(document)
    if len(tags) > MAX_TAGS or len(data) > MAX_TAGS_BYTES:
        raise FormatError(f"{len(tags)} tags are too many: at most {MAX_TAGS}")
    return data
