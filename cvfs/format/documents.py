"""What the JSON documents of a store have in common: the manifest, the tags (docs/format.md, section 7)."""

import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cvfs.errors import FormatError
from cvfs.format.blob import check_ref
from cvfs.limits import MAX_BLOB_BYTES
from cvfs.model import DIGEST_SIZE, Ancestor, BlobRef, Digest

FORMAT = 1
"""The version of the format that this code reads and writes."""

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_BlobSize = Annotated[int, Meta(ge=1, le=MAX_BLOB_BYTES)]


class RefDocument(msgspec.Struct, frozen=True):
    """A blob, as documents name it."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=2 * DIGEST_SIZE)]
    stored_size: _BlobSize
    plain_size: _BlobSize

    def blob_ref(self) -> BlobRef:
        """Raises FormatError for impossible sizes."""
        blob = BlobRef(Digest(bytes.fromhex(self.id)), self.stored_size, self.plain_size)
        check_ref(blob)
        return blob


class AncestorDocument(RefDocument, frozen=True):
    """A revision and the blob that its manifest is."""

    revision: Count
    published_s: Count

    def ancestor(self) -> Ancestor:
        return Ancestor(self.revision, self.published_s, self.blob_ref())


def parse(data: bytes, kind: Any, what: str) -> Any:
    """`data` as an instance of `kind`; what that does not name is left alone. Raises FormatError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"not {what}: {error}") from error


def check_json(data: bytes, what: str) -> None:
    """Refuse what JSON leaves open and readers understand differently, unknown fields included: a key that stands
    twice in an object, and text that is not UTF-8."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise FormatError(f"not {what}: a key stands twice in an object")
        return members

    try:
        json.loads(data.decode(), object_pairs_hook=unique, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not {what}: {error}") from error


def encode(document: dict[str, Any]) -> bytes:
    """Keys sorted, two spaces of indent, a newline at the end. Raises FormatError: a text that UTF-8 cannot hold."""
    try:
        return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as error:
        raise FormatError("a text that is not Unicode") from error


def encode_ref(ref: BlobRef) -> dict[str, Any]:
    return {"id": ref.id.hex(), "stored_size": ref.stored_size, "plain_size": ref.plain_size}


def encode_ancestor(ancestor: Ancestor) -> dict[str, Any]:
    return {
        **encode_ref(ancestor.manifest),
        "revision": ancestor.revision,
        "published_s": ancestor.published_s,
    }
