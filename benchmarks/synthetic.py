"""Repositories of any size within seconds: written by the format's own tree builder, without files on a disk.

The pages are what `cvfs-publisher publish` would make of such a tree, but for the packs: those do not exist, so files
can be looked up and listed, not read. Honest for mounting, walking and memory, which touch no pack.
"""

import random
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.sandbox import NAME
from cvfs.format.blob import blob_path, seal
from cvfs.format.pages import key_of
from cvfs.format.tree import build
from cvfs.model import NO_CONTENT, BlobRef, Content, Digest, Entry, Location, Manifest, Record
from publisher.repository.create import Security, sign_first
from publisher.signing.keys import Keys
from publisher.store import create_store

FILES_A_DIRECTORY = 25
_OBJECTS_A_PACK = 120
_MTIME_NS = 1_700_000_000_123_456_789


def make_store(store: Path, files: int) -> None:
    """A store of one revision: `files` files, 25 in a directory, 40 of those in another."""
    store.mkdir()

    def put(plain: bytes) -> BlobRef:
        ref, stored = seal(plain)
        file = store / blob_path(ref.id)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(stored)
        return ref

    root = build(_records(files), put)
    manifest = Manifest(NAME, 1, 1_700_000_000, root.page, root.level, root.summary, None)
    keys = Keys(store.with_name("keys"))
    sign_first(create_store(str(store)), manifest, keys, Security(), int(time.time()))


def _records(files: int) -> Iterator[Record]:
    """In key order: the root, the directories of the first level, then what is below."""
    directories = [b"part%04d/dir%05d" % (number // 40, number) for number in range(-(-files // FILES_A_DIRECTORY))]
    parts = sorted({path.split(b"/")[0] for path in directories})
    yield Record(b"", _directory(b"", len(parts)), NO_CONTENT)
    for part in parts:
        yield Record(b"", _directory(part, 40), NO_CONTENT)
    below = [Record(part, _directory(name, 0), NO_CONTENT) for part, name in (path.split(b"/") for path in directories)]
    yield from _merged(below, directories, files)


def _merged(below: list[Record], directories: list[bytes], files: int) -> Iterator[Record]:
    """The order of keys is that of directories: "part" before "part/dir" before the next "part"."""
    listed: dict[bytes, list[Record]] = {}
    for record in below:
        listed.setdefault(record.directory, []).append(record)
    chance = random.Random(files)
    number = 0
    for directory in sorted([*listed, *directories], key=lambda path: key_of(path, b"")):
        if directory in listed:
            yield from listed[directory]
            continue
        for _ in range(min(FILES_A_DIRECTORY, files - number)):
            yield _file(directory, number, chance)
            number += 1


def _directory(name: bytes, subdirectories: int) -> Entry:
    mode = stat.S_IFDIR | 0o755
    return Entry(name, mode, 0, 0, _MTIME_NS, 0, 2 + subdirectories, 0, 0, b"", b"", ())


_pack = BlobRef(Digest(bytes(32)), 300_000, 1 << 20)


def _file(directory: bytes, number: int, chance: random.Random) -> Record:
    global _pack  # noqa: PLW0603
    if number % _OBJECTS_A_PACK == 0:
        _pack = BlobRef(Digest(chance.randbytes(32)), 300_000, 1 << 20)
    size = chance.randrange(200, 8_000)
    name, content_id = b"module_%06d.py" % number, chance.randbytes(32)
    mtime_ns = _MTIME_NS + chance.randrange(10**15)
    entry = Entry(name, stat.S_IFREG | 0o644, 0, 0, mtime_ns, size, 1, 0, 0, content_id, b"", ())
    offset = number % _OBJECTS_A_PACK * 8_000
    return Record(directory, entry, Content((Location(0, size, _pack, offset, b""),)))
