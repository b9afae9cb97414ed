"""Blobs, the stored form of packs and pages (docs/format.md, section 3)."""

import zstandard
from blake3 import blake3

from cvfs.errors import FormatError, IntegrityError
from cvfs.limits import MAX_BLOB_BYTES
from cvfs.model import DIGEST_SIZE, BlobRef, Digest

DEFAULT_LEVEL = 3


def digest(data: bytes | memoryview) -> Digest:
    """BLAKE3-256 of `data`: its content id if it is an object or a chunk, its name if it is a stored blob."""
    return Digest(blake3(data).digest())


def blob_path(blob_id: Digest) -> str:
    """Where a store keeps the blob, relative to its root: data/<2 hex>/<62 hex>."""
    name = blob_id.hex()
    return f"data/{name[:2]}/{name[2:]}"


def seal(plain: bytes | memoryview, compressor: zstandard.ZstdCompressor | None = None) -> tuple[BlobRef, bytes]:
    """The blob of `plain`: how it is referred to, and the bytes to store.

    Compressed if that makes it smaller, stored raw if not. A compressor is not thread-safe: one for each thread.
    """
    stored = (compressor or zstandard.ZstdCompressor(DEFAULT_LEVEL)).compress(plain)
    if len(stored) >= len(plain):
        stored = bytes(plain)
    return BlobRef(digest(stored), len(stored), len(plain)), stored


def check_ref(ref: BlobRef) -> None:
    """Raise FormatError unless `ref` can be the reference of a blob."""
    if len(ref.id) != DIGEST_SIZE:
        raise FormatError(f"a blob id of {len(ref.id)} bytes")
    if not 0 < ref.stored_size <= ref.plain_size <= MAX_BLOB_BYTES:
        raise FormatError(f"blob {ref.id.hex()}: impossible sizes {ref.stored_size} stored, {ref.plain_size} plain")


def check(ref: BlobRef, stored: bytes | memoryview, source: str) -> None:
    """Raise IntegrityError unless `stored`, which came from `source`, are the bytes that `ref` names."""
    if len(stored) != ref.stored_size:
        raise IntegrityError(f"{ref.stored_size} bytes of {ref.id.hex()}", f"{len(stored)} bytes", source)
    got = digest(stored)
    if got != ref.id:
        raise IntegrityError(ref.id.hex(), got.hex(), source)


def unseal(ref: BlobRef, stored: bytes, source: str) -> bytes:
    """The plain bytes of a blob. Nothing is decompressed before its hash has been checked.

    Raises IntegrityError: these are not the bytes that `ref` names. FormatError: they are, and the publisher wrote
    something that does not decompress to `ref.plain_size` bytes.
    """
    check_ref(ref)
    check(ref, stored, source)
    if ref.stored_size == ref.plain_size:
        return stored
    return _decompress(ref, stored)


def _decompress(ref: BlobRef, stored: bytes) -> bytes:
    try:
        # The size in the frame decides what zstandard allocates, so it is compared first.
        if zstandard.frame_content_size(stored) != ref.plain_size:
            raise FormatError(f"blob {ref.id.hex()}: its zstd frame is not of {ref.plain_size} bytes")
        plain = zstandard.ZstdDecompressor().decompress(stored, read_across_frames=False, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"blob {ref.id.hex()}: {error}") from error
    if len(plain) != ref.plain_size:
        raise FormatError(f"blob {ref.id.hex()}: {len(plain)} plain bytes, not {ref.plain_size}")
    return plain
