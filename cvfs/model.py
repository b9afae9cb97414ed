"""The values that the rest of cvfs speaks in: frozen, free of I/O, and valid once `cvfs.format` has let them in."""

import stat
from typing import Annotated, NewType

import msgspec
from msgspec import Meta

from cvfs import limits

Digest = NewType("Digest", bytes)
"""BLAKE3-256, 32 bytes. It names content; a checksum (xxh3) never does."""

DIGEST_SIZE = 32

# Limits stand in the field types: msgspec holds decoded values to them before it allocates. Constructors do not check.
_U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
_U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
_U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_I64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Id = Annotated[int, Meta(ge=0, le=limits.MAX_ID)]
_ObjectSize = Annotated[int, Meta(ge=0, le=limits.MAX_OBJECT_BYTES)]
_BlobSize = Annotated[int, Meta(ge=1, le=limits.MAX_BLOB_BYTES)]
_Digest = Annotated[Digest, Meta(min_length=DIGEST_SIZE, max_length=DIGEST_SIZE)]
_DigestOrEmpty = Annotated[bytes, Meta(max_length=DIGEST_SIZE)]
_XattrName = Annotated[bytes, Meta(min_length=1, max_length=limits.MAX_XATTR_NAME_BYTES)]
_XattrValue = Annotated[bytes, Meta(max_length=limits.MAX_XATTR_VALUE_BYTES)]


class BlobRef(msgspec.Struct, frozen=True, array_like=True, gc=False, order=True):
    """One immutable stored blob, a pack or a page: what a reader must know before it asks a server for it.

    `id` is the BLAKE3-256 of the `stored_size` stored bytes. They are the `plain_size` plain bytes themselves where
    the two sizes are equal, else one zstd frame of them (docs/format.md, section 3).
    """

    id: _Digest
    stored_size: _BlobSize
    plain_size: _BlobSize


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The metadata of one path: facts alone, nothing of where its bytes are stored (docs/format.md, section 5).

    `mode` is a whole st_mode in Linux's numbers, type bits included. `size` is that of a regular file's content or of
    a symbolic link's target, else 0. `link_group` is the same number, not 0, in all names of one hard-linked file.
    `content_id` and `target` are empty where they do not apply; `xattrs` are sorted by name.
    """

    name: Annotated[bytes, Meta(max_length=limits.MAX_NAME_BYTES)]
    mode: _U16
    uid: _Id
    gid: _Id
    mtime_ns: _I64
    size: _ObjectSize
    nlink: Annotated[int, Meta(ge=1, le=0xFFFFFFFF)]
    link_group: _U63
    rdev: _U32
    content_id: _DigestOrEmpty
    target: Annotated[bytes, Meta(max_length=limits.MAX_PATH_BYTES)]
    xattrs: tuple[tuple[_XattrName, _XattrValue], ...]

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Location(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where `length` bytes of an object, from `object_offset` on, are found: in the plain bytes of `pack`.

    `chunk_id` names the chunk of a chunked object; it is empty where the location is the whole object.
    """

    object_offset: int
    length: int
    pack: BlobRef
    pack_offset: int
    chunk_id: bytes


class Content(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where the bytes of one regular file are stored, in order of offset; what no location covers is zeros.

    Either `locations` say it all, or `location_pages` name pages that hold them (a file of very many chunks):
    (offset of the first byte it speaks of, the page).
    """

    locations: tuple[Location, ...] = ()
    location_pages: tuple[tuple[int, BlobRef], ...] = ()


NO_CONTENT = Content()


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One path of a repository: the directory it is listed in (b"" is the root; no slash at either end), its entry,
    and where its content is. The root directory itself is the entry with the empty name in directory b""."""

    directory: bytes
    entry: Entry
    content: Content

    @property
    def path(self) -> bytes:
        return join(self.directory, self.entry.name)


class Summary(msgspec.Struct, frozen=True):
    """Totals of a tree: how many entries it has, the root included, and the sum of the sizes of its regular files."""

    entries: int
    size_bytes: int


class Ancestor(msgspec.Struct, frozen=True):
    """An earlier revision, as a later manifest or a tag names it: its number, when it was published (seconds since
    1970 UTC), and its stored manifest."""

    revision: int
    published_s: int
    manifest: BlobRef


class Manifest(msgspec.Struct, frozen=True):
    """Revision `revision` of `repository` is the tree below `root` (docs/format.md, section 7).

    `level` is the level of the root page, 0 for a leaf. `published_s` is in seconds since 1970 UTC. `parent` is the
    stored manifest of the revision before, None in the first. `ancestors` are some of the revisions before, by number,
    the parent last: from them any other is found in few steps (`cvfs.format.history`).
    """

    repository: str
    revision: int
    published_s: int
    root: BlobRef
    level: int
    summary: Summary
    parent: BlobRef | None
    message: str = ""
    ancestors: tuple[Ancestor, ...] = ()


def join(directory: bytes, name: bytes) -> bytes:
    """The path of `name` in `directory`; both relative to the repository's root, b"" being the root."""
    return directory + b"/" + name if directory else name


def split(path: bytes) -> tuple[bytes, bytes]:
    """The (directory, name) under which `path` is listed; (b"", b"") for the root."""
    directory, _, name = path.rpartition(b"/")
    return directory, name
