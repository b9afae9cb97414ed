"""Writes the test vectors of docs/format.md, section 12, anew: python -m tests.format.make_vectors

Byte for byte the same with any version of any library: compressed blobs are made by hand, of zstd's raw and RLE blocks.
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash
from blake3 import blake3

from cvfs.format.history import ancestors_after
from cvfs.format.manifest import encode_manifest
from cvfs.format.pages import encode_locations
from cvfs.format.tree import build
from cvfs.model import NO_CONTENT, BlobRef, Content, Digest, Entry, Location, Manifest, Record
from tests.format.independent_reader import list_store, pack, unpack
from tests.format.signed_vectors import signed

VECTORS = Path(__file__).parent / "vectors"
REPOSITORY = VECTORS / "repository"
MIB = 1 << 20


def main() -> None:
    shutil.rmtree(VECTORS, ignore_errors=True)
    for name, text in all_vectors().items():
        path = VECTORS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path, data in repository().items():
        target = REPOSITORY / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (VECTORS / "listing.json").write_bytes(listing())


def all_vectors() -> dict[str, str]:
    """The text of each vector file, by its path below VECTORS."""
    made: dict[str, str] = {}
    for text in (*blobs(), *pages(), *trees(), *manifests(), *tags(), *histories(), *signed(vector)):
        kind = text.partition("\n")[0]
        title = re.search("^comment: (.*)$", text, re.MULTILINE)
        assert title is not None
        name = f"{kind.removeprefix('kind: ')}/{re.sub('[^a-z0-9]+', '-', title[1].lower()).strip('-')}.txt"
        assert name not in made, name
        made[name] = text
    return made


def listing() -> bytes:
    lines = (json.dumps(line, sort_keys=True) for line in list_store(REPOSITORY))
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()


# The files


def vector(kind: str, comment: str, rule: str, bodies: Iterable[bytes], **headers: object) -> str:
    """The text of one vector; `rule` is "" where success is expected."""
    expect = "success" if not rule else "wrong bytes" if rule in ("B2", "B3", "C8") else "refused"
    lines = {"kind": kind, "expect": expect, "rule": rule, "comment": comment, **headers}
    head = "".join(f"{name}: {value}\n" for name, value in lines.items() if value != "")
    return head + "".join("\n" + dump(body) for body in bodies)


def dump(data: bytes) -> str:
    """Lines of hexadecimal, runs of one byte as <hex>*<count>."""
    lines = []
    for piece in runs(data, 64):
        if len(piece) >= 64 and piece == piece[:1] * len(piece):
            lines.append(f"{piece[:1].hex()}*{len(piece)}")
        else:
            lines += [piece[at : at + 48].hex() for at in range(0, len(piece), 48)]
    return "".join(line + "\n" for line in lines)


def runs(data: bytes, least: int, most: int | None = None) -> Iterable[bytes]:
    """`data` in pieces: runs of one byte of that length, and what is between them."""
    end = 0
    for run in re.finditer(rb"(?s)(.)\1{%d,%s}" % (least - 1, b"" if most is None else b"%d" % (most - 1)), data):
        yield data[end : run.start()]
        yield run[0]
        end = run.end()
    yield data[end:]


def blake(data: bytes) -> bytes:
    return blake3(data).digest()


# Blobs


def block(kind: int, size: int, data: bytes, last: bool = False) -> bytes:
    return (last | kind << 1 | size << 3).to_bytes(3, "little") + data


def frame(plain: bytes, announced: int | None = None, checksum: int | None = None) -> bytes:
    """A zstd frame of raw and RLE blocks, of one segment."""
    size = len(plain) if announced is None else announced
    head = bytes([0xA0 | (0 if checksum is None else 4)]) + size.to_bytes(4, "little")
    pieces = [piece for piece in runs(plain, 8, 65536) if piece]
    blocks = b"".join(
        block(1, len(piece), piece[:1], index == len(pieces) - 1)
        if len(piece) >= 8 and piece == piece[:1] * len(piece)
        else block(0, len(piece), piece, index == len(pieces) - 1)
        for index, piece in enumerate(pieces)
    )
    tail = b"" if checksum is None else checksum.to_bytes(4, "little")
    return b"\x28\xb5\x2f\xfd" + head + blocks + tail


def hand_seal(plain: bytes) -> tuple[BlobRef, bytes]:
    """As cvfs.format.blob.seal, with a compressor that never changes."""
    stored = frame(plain)
    if len(stored) >= len(plain):
        stored = plain
    return BlobRef(Digest(blake(stored)), len(stored), len(plain)), stored


_WORDS = b"the same words, the same words again, and the same words once more: " * 3
_WORDS_BY_ZSTD = bytes.fromhex(
    "28b52ffd20cca5010054027468652073616d6520776f7264732c2020616761696e2c20616e646f6e6365206d6f72653a0400f70829001dea897823cf25"
)
_ZEROS = bytes(1000)


def blob(comment: str, rule: str, stored: bytes, plain_size: int, plain: bytes = b"", **headers: object) -> str:
    shown = {"id": blake(stored).hex(), "stored_size": len(stored), "plain_size": plain_size, **headers}
    return vector("blob", comment, rule, [stored], **shown, plain="" if rule else blake(plain).hex())


def blobs() -> Iterable[str]:
    zeros = frame(_ZEROS)
    checksum = xxhash.xxh64_intdigest(_ZEROS) & 0xFFFFFFFF
    yield blob("Raw", "", b"hello", 5, b"hello")
    yield blob("RLE block", "", zeros, 1000, _ZEROS)
    yield blob("Compressed block", "", _WORDS_BY_ZSTD, len(_WORDS), _WORDS)
    yield blob("Checksum", "", frame(_ZEROS, checksum=checksum), 1000, _ZEROS)
    yield blob("Zeros up to the limit", "", frame(bytes(16 * MIB)), 16 * MIB, bytes(16 * MIB))
    yield blob("Raw and looks compressed", "", zeros, len(zeros), zeros)
    windowed = b"\x28\xb5\x2f\xfd\x40\x00" + (1000 - 256).to_bytes(2, "little") + block(1, 1000, b"\0", True)
    yield blob("Frame with a window", "", windowed, 1000, _ZEROS)
    yield blob("Stored more than plain", "B1", b"hello", 4)
    yield blob("Nothing stored", "B1", b"", 0)
    yield blob("Nothing stored of something", "B1", b"", 5)
    yield blob("Plain over the limit", "B1", frame(bytes(16 * MIB + 1)), 16 * MIB + 1)
    yield blob("Stored and plain over the limit", "B1", bytes(16 * MIB + 1), 16 * MIB + 1)
    yield blob("Short id", "B1", b"hello", 5, id=blake(b"hello").hex()[:-2])
    yield blob("Long id", "B1", b"hello", 5, id=blake(b"hello").hex() + "00")
    yield blob("Cut short in transit", "B2", zeros[:-1], 1000, id=blake(zeros).hex(), stored_size=len(zeros))
    yield blob("Grown in transit", "B2", zeros + b"\0", 1000, id=blake(zeros).hex(), stored_size=len(zeros))
    yield blob("Flipped bit", "B3", b"iello", 5, id=blake(b"hello").hex())
    yield blob("Flipped bit in a frame", "B3", zeros[:-1] + b"\1", 1000, id=blake(zeros).hex())
    yield blob("Named by the hash of the plain bytes", "B3", zeros, 1000, id=blake(_ZEROS).hex())
    yield blob("Not a frame", "B4", b"hello", 1000)
    yield blob("Frame cut short", "B4", zeros[:-1], 1000)
    yield blob("Frame cut short in its header", "B4", zeros[:6], 1000)
    yield blob("Frame without a last block", "B4", zeros[:9] + block(1, 1000, b"\0"), 1000)
    yield blob("Byte behind the frame", "B4", zeros + b"\0", 1000)
    yield blob("Two frames", "B4", zeros + zeros, 1000)
    yield blob("Two frames of half the bytes each", "B5", frame(bytes(500)) * 2, 1000)
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    yield blob("Skippable frame before", "B4", skippable + zeros, 1000)
    yield blob("Skippable frame behind", "B4", zeros + skippable, 1000)
    yield blob("Skippable frame alone", "B4", skippable, 1000)
    yield blob("Dictionary", "B4", b"\x28\xb5\x2f\xfd\xa1\x07" + zeros[5:], 1000)
    yield blob("Magicless frame", "B4", zeros[4:], 1000)
    yield blob("No content size", "B5", b"\x28\xb5\x2f\xfd\x00\x00" + block(1, 1000, b"\0", True), 1000)
    yield blob("Frame of fewer bytes", "B5", frame(bytes(999)), 1000)
    yield blob("Frame of more bytes", "B5", frame(bytes(1001)), 1000)
    yield blob("Bomb", "B5", frame(bytes(64 * MIB)), 10_000)
    tebi = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + block(1, 1000, b"\0", True)
    yield blob("Frame that says a tebibyte", "B5", tebi, 1000)
    yield blob("Yields fewer bytes than announced", "B6", frame(bytes(999), announced=1000), 1000)
    yield blob("Yields more bytes than announced", "B6", frame(bytes(1001), announced=1000), 1000)
    yield blob("Reserved block type", "B6", zeros[:9] + block(3, 1000, b"\0", True), 1000)
    yield blob("Wrong checksum", "B6", frame(_ZEROS, checksum=checksum ^ 1), 1000)
    broken = bytearray(_WORDS_BY_ZSTD)
    broken[-1] = 0
    yield blob("Broken compressed block", "B6", bytes(broken), len(_WORDS))


# Pages

HELLO = blake(b"hello")
PACK = [bytes(range(32)), 700, 1000]
PACK2 = [bytes(range(1, 33)), 1000, 1000]
PAGE = [bytes(range(2, 34)), 300, 400]
_FIELDS = Entry.__struct_fields__


def entry(name: bytes = b"f", mode: int = 0o100644, **values: object) -> list[Any]:
    regular = mode & 0xF000 == 0x8000
    fields: dict[str, object] = {"uid": 0, "gid": 0, "mtime_ns": 1_700_000_000_123_456_789, "size": 5 * regular}
    fields |= {"nlink": 1, "link_group": 0, "rdev": 0, "content_id": HELLO if regular else b"", "target": b""}
    fields |= {"name": name, "mode": mode, "xattrs": [], **values}
    return [fields[key] for key in _FIELDS]


def place(offset: int = 0, length: int = 5, pack_: int = 0, pack_offset: int = 0, chunk: bytes = b"") -> list[Any]:
    return [offset, length, pack_, pack_offset, chunk]


ROOT = entry(b"", 0o40755, nlink=2)
WHOLE = [[place()], []]
CHUNK = blake(b"chunk")


def leaf(*groups: object, packs: object = ()) -> list[Any]:
    return [0, list(packs), list(groups)]  # type: ignore[call-overload]


def one(entry_: object, content: object = None, packs: object = (), directory: bytes = b"d") -> list[Any]:
    return leaf([directory, [entry_], [content]], packs=packs)


def child(directory: bytes, name: bytes, blob_: object = PAGE, entries: int = 1, size_bytes: int = 0) -> list[Any]:
    return [directory, name, blob_, entries, size_bytes]


def page(comment: str, rule: str, value: object, plain: bytes | None = None) -> str:
    plain = pack(value) if plain is None else plain
    shown = "" if rule or len(plain) > 4096 else json.dumps(unpack(plain), default=bytes.hex)
    return vector("page", comment, rule, [plain], value=shown)


def pages() -> Iterable[str]:
    yield from valid_pages()
    yield from bad_messagepack()
    yield from bad_structure()
    yield from bad_names()
    yield from bad_entries()
    yield from bad_contents()


def valid_pages() -> Iterable[str]:
    kinds = [
        entry(b"\x01", 0o10644, uid=2**32 - 2, gid=2**32 - 2),
        entry(b"\xff\xfe not UTF-8\n", 0o140777, mtime_ns=-1),
        entry(b"block", 0o60660, rdev=2**32 - 1, link_group=2**63 - 1, nlink=2**32 - 1),
        entry(b"character", 0o20666, rdev=0x103),
        entry(b"directory", 0o47777, mtime_ns=-(2**63)),
        entry(b"link", 0o120777, size=8, target=b"../\xff/../"),
        entry(b"n" * 255, 0o106755, mtime_ns=2**63 - 1),
    ]
    kinds.sort(key=lambda fields: fields[0])
    yield page("Empty repository", "", leaf([b"", [ROOT], [None]]))
    yield page("Every file type and extreme values", "", leaf([b"d", kinds, [None] * len(kinds)]))
    xattrs = [[b"security.capability", bytes(20)], [b"user.empty", b""], [b"user.long", bytes(65536)]]
    yield page("Extended attributes", "", one(entry(xattrs=xattrs)))
    groups = [[d, [entry(b"x", 0o40755)], [None]] for d in (b"", b"a", b"a/b", b"a/b/c", b"a\x01", b"a!", b"a-b")]
    groups[0][1].insert(0, ROOT)  # type: ignore[attr-defined]
    groups[0][2].insert(0, None)  # type: ignore[attr-defined]
    yield page("Order of directories", "", leaf(*groups))
    two = [entry(b"a"), entry(b"b"), entry(b"c")]
    contents = [[[place()], []], [[place(pack_=1, pack_offset=995)], []], [[place(pack_offset=5)], []]]
    yield page("Whole objects in two packs", "", leaf([b"d", two, contents], packs=[PACK, PACK2]))
    chunks = [[place(0, 100, 0, 0, CHUNK), place(900, 100, 0, 100, CHUNK)], []]
    yield page("Chunks with a hole between", "", one(entry(size=2**50), chunks, [PACK]))
    yield page("One chunk", "", one(entry(), [[place(chunk=CHUNK)], []], [PACK]))
    yield page("Nothing but a hole", "", one(entry(size=2**50)))
    yield page("Empty file", "", one(entry(size=0, content_id=blake(b""))))
    yield page("Location pages in a leaf", "", one(entry(size=100), [[], [[0, PAGE], [99, PAGE]]]))
    deep = b"/".join([b"d" * 255] * 15 + [b"e" * 253])
    yield page("Path of 4095 bytes", "", one(entry(b"f"), directory=deep))
    yield page(
        "Inner page", "", [1, 16, [child(b"", b""), child(b"a", b"x"), child(b"a/b", b"c", size_bytes=2**63 - 1)]]
    )
    yield page("Location page", "", [2, [PACK], [place(0, 5, chunk=CHUNK), place(7, 5, chunk=CHUNK)]])
    yield page("Exactly 4 MiB", "", None, sized_leaf(4 * MIB))


def sized_leaf(size: int) -> bytes:
    """A legal leaf of that many bytes: 63 entries with a long attribute each, and one that fills up."""

    def make(rest: int) -> bytes:
        sizes = [65536] * 63 + [rest]
        many = [entry(b"%03d" % i, xattrs=[[b"user.x", bytes(n)]]) for i, n in enumerate(sizes)]
        return pack(leaf([b"d", many, [None] * len(many)]))

    return make(1000 + size - len(make(1000)))


def bad_messagepack() -> Iterable[str]:
    good = pack(leaf([b"", [ROOT], [None]]))
    yield page("Nothing", "M1", None, b"")
    yield page("Last byte missing", "M1", None, good[:-1])
    yield page("Array longer than the page", "M1", None, b"\x93\x00\x90\xdd\xff\xff\xff\xff")
    yield page("Packs longer than the page", "M1", None, b"\x93\x00\xdd\xff\xff\xff\xff")
    yield page("Children longer than the page", "M1", None, b"\x93\x01\x01\xdd\xff\xff\xff\xff")
    yield page("Bytes longer than the page", "M1", None, b"\x93\x00\x90\x91\x93\xc6\xff\xff\xff\xff")
    yield page("Byte that MessagePack does not use", "M1", None, b"\xc1")
    yield page("Byte behind the end", "M2", None, good + b"\x00")
    yield page("Page behind the end", "M2", None, good + good)
    longer = {
        "Integer in uint 8": (b"\x93\x00", b"\x93\xcc\x00"),
        "Integer in int 8": (b"\x93\x00", b"\x93\xd0\x00"),
        "Integer in int 64": (b"\xcf\x17", b"\xd3\x17"),
        "Array in array 16": (b"\x93\x00", b"\xdc\x00\x03\x00"),
        "Array in array 32": (b"\x93\x00", b"\xdd\x00\x00\x00\x03\x00"),
        "Bytes in bin 16": (b"\xc4\x00", b"\xc5\x00\x00"),
        "Bytes in bin 32": (b"\xc4\x00", b"\xc6\x00\x00\x00\x00"),
    }
    for comment, (short, long) in longer.items():
        assert short in good
        yield page(comment, "M3", None, good.replace(short, long, 1))
    yield page("Name in the str family", "M4", None, good.replace(b"\xc4\x00", b"\xa0", 1))
    yield page("Boolean for an integer", "M4", None, good.replace(b"\x93\x00", b"\x93\xc2", 1))
    yield page("Float for an integer", "M4", None, b"\x93\x01\xca\x3f\x80\x00\x00\x90")
    yield page("Map", "M4", None, b"\x83\x00\x00\x01\x90\x02\x90")
    yield page("Extension type", "M4", None, b"\x93\x00\x90\x91\xd4\x01\x00")
    yield page("Nested ten thousand deep", "M4", None, b"\x91" * 10_000 + b"\xc0")
    deep = b"\x91" * 100_000 + b"\xc0"
    yield page("Field more in a leaf and a hundred thousand deep", "M4", None, b"\x94" + good[1:] + deep)
    yield page("Nil for a list", "M4", [0, None, []])
    yield page("Nil for a page", "M4", None)
    yield page("Field more in a leaf", "M4", [*leaf([b"", [ROOT], [None]]), 0])
    yield page("Field less in a leaf", "M4", [0, []])
    yield page("Field more in an entry", "M4", one([*entry(), 0]))
    yield page("Field less in an entry", "M4", one(entry()[:-1]))
    yield page("Unknown kind of page", "M4", [3, [], []])
    yield page("Negative kind of page", "M4", [-1, [], []])
    yield page("Empty array for a page", "M4", [])


def bad_structure() -> Iterable[str]:
    yield page("One byte over 4 MiB", "P1", None, sized_leaf(4 * MIB + 1))
    yield page("Leaf without groups", "P2", leaf())
    yield page("Group without entries", "P2", leaf([b"d", [], []]))
    yield page("Inner page without children", "P2", [1, 1, []])
    yield page("Location page without locations", "P2", [2, [], []])
    yield page("Content missing", "P3", leaf([b"d", [entry()], []]))
    yield page("Content too many", "P3", leaf([b"d", [entry()], [None, None]]))
    group_of = lambda directory: [directory, [entry()], [None]]  # noqa: E731
    yield page("Directory twice", "P4", leaf(group_of(b"d"), group_of(b"d")))
    yield page("Directories descending", "P4", leaf(group_of(b"e"), group_of(b"d")))
    yield page("Directories ordered with the slash as it is", "P4", leaf(group_of(b"a-b"), group_of(b"a/b")))
    yield page("Name twice", "P5", leaf([b"d", [entry(), entry()], [None, None]]))
    yield page("Names descending", "P5", leaf([b"d", [entry(b"b"), entry(b"a")], [None, None]]))
    yield page("Pack listed twice", "P10", leaf(*files_in(0, 1), packs=[PACK, PACK]))
    yield page("Pack not used", "P10", one(entry(), WHOLE, [PACK, PACK2]))
    yield page("Packs not in the order of their use", "P10", leaf(*files_in(1, 0), packs=[PACK, PACK2]))
    yield page("First pack used last", "P10", leaf(*files_in(1, 1, 0), packs=[PACK, PACK2]))
    yield page("Pack that is not in the list", "P10", one(entry(), [[place(pack_=1)], []], [PACK]))
    yield page("Pack number of 63 bits", "P10", one(entry(), [[place(pack_=2**63 - 1)], []], [PACK]))
    yield page("Pack with stored size over plain size", "B1", one(entry(), WHOLE, [[PACK[0], 1001, 1000]]))
    yield page("Pack with an id of 31 bytes", "B1", one(entry(), WHOLE, [[bytes(31), 700, 1000]]))
    yield page("Pack over the limit", "B1", one(entry(), WHOLE, [[PACK[0], 700, 16 * MIB + 1]]))
    yield page("Children in one place", "P11", [1, 1, [child(b"d", b"f"), child(b"d", b"f")]])
    yield page("Children descending", "P11", [1, 1, [child(b"d", b"g"), child(b"d", b"f")]])
    yield page("Child without a name", "P12", [1, 1, [child(b"d", b"")]])
    yield page("Child with a slash in its name", "P12", [1, 1, [child(b"d", b"a/b")]])
    yield page("Child in a directory that ends with a slash", "P12", [1, 1, [child(b"d/", b"f")]])
    yield page("Child of stored size 0", "B1", [1, 1, [child(b"d", b"f", [bytes(32), 0, 5])]])
    yield page("Child stored more than plain", "B1", [1, 1, [child(b"d", b"f", [bytes(32), 6, 5])]])
    yield page("Child of no entries", "M5", [1, 1, [child(b"d", b"f", entries=0)]])
    yield page("Level 0 for an inner page", "M5", [1, 0, [child(b"d", b"f")]])
    yield page("Level 17", "M5", [1, 17, [child(b"d", b"f")]])


def files_in(*packs: int) -> list[Any]:
    names = [b"f%d" % number for number in range(len(packs))]
    return [[b"d", list(map(entry, names)), [[[place(pack_=number)], []] for number in packs]]]


def bad_names() -> Iterable[str]:
    names = {"slash": b"a/b", "NUL": b"a\0b", "one dot": b".", "two dots": b".."}
    for what, name in names.items():
        yield page(f"Name of {what}", "P6", one(entry(name)))
        yield page(f"Name of {what} in the root directory", "P6", one(entry(name), directory=b""))
        yield page(f"Directory of {what}", "P7", one(entry(), directory=b"d/" + name.replace(b"/", b"//")))
    yield page("Empty name below the root", "P6", one(entry(b"", 0o40755)))
    yield page("Name of 256 bytes", "M5", one(entry(b"n" * 256)))
    yield page("Directory that begins with a slash", "P7", one(entry(), directory=b"/d"))
    yield page("Directory that ends with a slash", "P7", one(entry(), directory=b"d/"))
    yield page("Directory with a name of 256 bytes", "P7", one(entry(), directory=b"d" * 256))
    deep = b"/".join([b"d" * 255] * 15 + [b"e" * 253])
    yield page("Path of 4096 bytes", "P8", one(entry(b"ff"), directory=deep))
    yield page("Directory of 4096 bytes", "M5", one(entry(), directory=b"/".join([b"d" * 255] * 16) + b"/"))
    yield page("Root that is a file", "P9", one(entry(b""), directory=b""))


def bad_entries() -> Iterable[str]:
    limits = {
        "mode": [0x10000, -1],
        "uid": [2**32 - 1, -1],
        "gid": [2**32 - 1],
        "mtime_ns": [2**63],
        "size": [2**50 + 1],
        "nlink": [0, 2**32],
        "link_group": [2**63],
        "rdev": [2**32],
        "content_id": [bytes(33)],
        "xattrs": [[[b"", b""]], [[b"n" * 256, b""]], [[b"n", bytes(65537)]]],
    }
    for field, values in limits.items():
        for number, value in enumerate(values, 1):
            yield page(f"Field {field} outside its limits {number}", "M5", one(entry(**{field: value})))
    for kind in (0, 0x3000, 0x9000, 0xF000):
        yield page(f"File type {kind:#x}", "E1", one(entry(mode=kind | 0o644, size=0, content_id=b"")))
    yield page("Regular file without content id", "E2", one(entry(content_id=b"")))
    yield page("Regular file with a content id of 31 bytes", "E2", one(entry(content_id=bytes(31))))
    yield page("Regular file with a target", "E2", one(entry(target=b"x")))
    yield page("Regular file with a device number", "E2", one(entry(rdev=1)))
    for field, value in {"size": 1, "link_group": 1, "rdev": 1, "content_id": HELLO, "target": b"x"}.items():
        yield page(f"Directory with {field}", "E2", one(entry(mode=0o40755, **{field: value})))
    for field, value in {"size": 1, "rdev": 1, "content_id": HELLO, "target": b"x"}.items():
        yield page(f"Fifo with {field}", "E2", one(entry(mode=0o10644, **{field: value})))
    yield page("Device with size", "E2", one(entry(mode=0o20644, size=1)))
    yield page("Symbolic link with a content id", "E2", one(link(b"x", content_id=HELLO)))
    yield page("Symbolic link with a device number", "E2", one(link(b"x", rdev=1)))
    yield page("Symbolic link to nothing", "E3", one(link(b"")))
    yield page("Symbolic link with a NUL", "E3", one(link(b"a\0b")))
    yield page("Symbolic link of another size", "E3", one(link(b"ab", size=3)))
    yield page("Symbolic link of 4096 bytes", "M5", one(link(b"a" * 4096)))
    yield page("Attributes descending", "E4", one(entry(xattrs=[[b"user.b", b""], [b"user.a", b""]])))
    yield page("Attribute twice", "E4", one(entry(xattrs=[[b"user.a", b""], [b"user.a", b""]])))
    yield page("Attribute with a NUL in its name", "E4", one(entry(xattrs=[[b"user.\0", b""]])))
    most = [[b"user.%d" % i, bytes(65530)] for i in range(4)]
    yield page("Attributes of 262144 bytes", "", one(entry(xattrs=most)))
    yield page("Attributes of 262145 bytes", "E5", one(entry(xattrs=[[b"a", b""], *most])))


def link(target: bytes, **values: object) -> list[Any]:
    return entry(b"l", 0o120777, **{"size": len(target), "target": target, **values})


def bad_contents() -> Iterable[str]:
    def chunked(comment: str, rule: str, *places: object, size: int = 1000) -> str:
        return page(comment, rule, one(entry(size=size), [list(places), []], [PACK]))

    yield page("Content of a directory", "C1", one(entry(mode=0o40755), WHOLE, [PACK]))
    yield page("Content of a symbolic link", "C1", one(link(b"hello"), WHOLE, [PACK]))
    yield page("Content that is empty", "C1", one(entry(), [[], []]))
    yield page("Locations and location pages", "C1", one(entry(), [[place()], [[0, PAGE]]], [PACK]))
    yield page("Whole object shorter than its entry", "C2", one(entry(size=6), WHOLE, [PACK]))
    yield page("Whole object longer than its entry", "C2", one(entry(size=4), WHOLE, [PACK]))
    yield page("Whole object that does not begin at 0", "C2", one(entry(), [[place(1)], []], [PACK]))
    yield page("Content of an empty file", "C2", one(entry(size=0), WHOLE, [PACK]))
    yield chunked("Chunks that overlap", "C3", place(0, 5, chunk=CHUNK), place(4, 5, chunk=CHUNK))
    yield chunked("Chunks descending", "C3", place(5, 5, chunk=CHUNK), place(0, 5, chunk=CHUNK))
    yield chunked("Chunk twice", "C3", place(0, 5, chunk=CHUNK), place(0, 5, chunk=CHUNK))
    yield chunked("Two locations without chunk ids", "C3", place(0, 5), place(5, 5), size=10)
    yield chunked("Chunk id of 31 bytes", "C3", place(0, 5, chunk=bytes(31)), size=5)
    yield chunked("Chunk id of 33 bytes", "M5", place(0, 5, chunk=bytes(33)), size=5)
    yield chunked("Chunk beyond the end", "C4", place(996, 5, chunk=CHUNK))
    yield chunked("Location of length 0", "M5", place(0, 0, chunk=CHUNK))
    yield chunked("Location at an offset of 64 bits", "M5", place(2**64 - 1, 5, chunk=CHUNK))
    yield chunked("Location beyond the end of its pack", "C5", place(0, 5, 0, 996), size=5)
    yield chunked("Location that begins at the end of its pack", "C5", place(0, 5, 0, 16 * MIB), size=5)
    paged = lambda *pages: one(entry(size=100), [[], list(pages)])  # noqa: E731
    yield page("Location pages descending", "C6", paged([50, PAGE], [0, PAGE]))
    yield page("Location pages at one offset", "C6", paged([0, PAGE], [0, PAGE]))
    yield page("Location page beyond the end", "C6", paged([0, PAGE], [100, PAGE]))
    yield page("Location page of an impossible size", "B1", paged([0, [bytes(32), 5, 4]]))
    yield page("Location page without a chunk id", "C3", [2, [PACK], [place()]])
    yield page("Location page that overlaps itself", "C3", [2, [PACK], [place(3, 5, chunk=CHUNK)] * 2])
    yield page("Location page beyond every object", "C4", [2, [PACK], [place(2**50, 5, chunk=CHUNK)]])
    yield page("Location page with a pack too many", "P10", [2, [PACK, PACK2], [place(chunk=CHUNK)]])


# Trees


class Blobs:
    def __init__(self) -> None:
        self.stored: list[bytes] = []

    def put(self, plain: bytes) -> list[Any]:
        self.stored.append(plain)
        return [blake(plain), len(plain), len(plain)]

    def page(self, value: object) -> list[Any]:
        return self.put(pack(value))

    def leaf(self, directory: bytes, *names: bytes) -> list[Any]:
        entries = [entry(name, 0o10644) for name in names]
        if directory:
            return self.page(leaf([directory, entries, [None] * len(names)]))
        return self.page(leaf([b"", [ROOT, *entries], [None] * (1 + len(names))]))

    def tree(self, comment: str, rule: str, root: list[Any], level: int) -> str:
        shown = f"{root[0].hex()} {root[1]} {root[2]}"
        return vector("tree", comment, rule, self.stored, root=shown, level=level)


def trees() -> Iterable[str]:
    yield from page_trees()
    yield from content_trees()


def page_trees() -> Iterable[str]:
    store = Blobs()
    parts = [child(b"", b"", store.leaf(b"", b"a")), child(b"a", b"x", store.leaf(b"a", b"x", b"y"))]
    low = store.page([1, 1, parts])
    other = store.page([1, 1, [child(b"b", b"x", store.leaf(b"b", b"x"))]])
    root = store.page([1, 2, [child(b"", b"", low), child(b"b", b"x", other)]])
    yield store.tree("Three levels", "", root, 2)
    yield store.tree("Root of a higher level than was said", "T1", root, 1)
    yield store.tree("Root of a lower level than was said", "T1", low, 2)
    yield store.tree("Root that does not begin with the root directory", "T2", other, 1)
    places = pack([2, [PACK], [place(chunk=CHUNK)]])
    for comment, rule, key, wrong in (
        ("Child of the same level as its parent", "T1", (b"a", b"x"), lambda s: s.page([1, 1, [child(b"a", b"x")]])),
        ("Location page for a leaf", "T1", (b"a", b"x"), lambda s: s.put(places)),
        ("Leaf that begins behind the named key", "T2", (b"a", b"w"), lambda s: s.leaf(b"a", b"x")),
        ("Leaf that begins before the named key", "T2", (b"a", b"x"), lambda s: s.leaf(b"a", b"w", b"x")),
        ("Leaf that is named again under another key", "T2", (b"a", b"x"), lambda s: s.leaf(b"", b"a")),
    ):
        store = Blobs()
        parts = [child(b"", b"", store.leaf(b"", b"a")), child(*key, wrong(store))]
        yield store.tree(comment, rule, store.page([1, 1, parts]), 1)
    store = Blobs()
    parts = [
        child(b"", b"", store.leaf(b"", b"a", b"c")),
        child(b"", b"b", store.page(one(entry(b"b", 0o10644), directory=b""))),
    ]
    yield store.tree("Leaf that reaches beyond its end", "T3", store.page([1, 1, parts]), 1)
    store = Blobs()
    low = store.page([1, 1, [child(b"", b"", store.leaf(b"", b"a")), child(b"c", b"x", store.leaf(b"c", b"x"))]])
    high = store.page([1, 1, [child(b"b", b"x", store.leaf(b"b", b"x"))]])
    root = store.page([1, 2, [child(b"", b"", low), child(b"b", b"x", high)]])
    yield store.tree("Inner page that reaches beyond its end", "T3", root, 2)


def content_trees() -> Iterable[str]:
    first, second = b"first chunk", b"second chunk"
    whole = first + bytes(9) + second + bytes(8)

    def paged(comment: str, rule: str, offsets: tuple[int, int] = (0, 20), size: int = 40, **wrong: bytes) -> str:
        store = Blobs()
        packed = store.put(first + second)
        one_ = store.page([2, [packed], [place(0, 11, chunk=wrong.get("chunk", blake(first)))]])
        two = store.page([2, [packed], [place(20, 12, 0, 11, blake(second))]])
        file = entry(size=size, content_id=wrong.get("whole", blake(whole)))
        content = [
            [],
            [[offsets[0], one_], [offsets[1], store.page(leaf([b"", [ROOT], [None]])) if wrong.get("leaf") else two]],
        ]
        return store.tree(comment, rule, store.page(leaf([b"", [ROOT, file], [None, content]])), 0)

    yield paged("Location pages with holes", "")
    yield paged("Location page that begins before its offset", "C7", (0, 21))
    yield paged("Location page that begins behind its offset", "C7", (0, 19))
    yield paged("Location page that reaches into the next", "C7", (0, 10))
    yield paged("Location page that reaches beyond the object", "C7", size=31)
    yield paged("Leaf for a location page", "C7", leaf=b"yes")
    yield paged("Wrong chunk", "C8", chunk=blake(b"other"))
    yield paged("Wrong chunked object", "C8", whole=blake(b"other"))
    for comment, rule, data in (("Whole object", "", b"hello"), ("Wrong object", "C8", b"jello")):
        store = Blobs()
        packed = store.put(b"some " + data)
        root = leaf([b"", [ROOT, entry()], [None, [[place(pack_offset=5)], []]]], packs=[packed])
        yield store.tree(comment, rule, store.page(root), 0)


# Manifests

_MANIFEST = {
    "entries": 1,
    "features": [],
    "format": 1,
    "message": "",
    "parent": None,
    "published_s": 1_700_000_000,
    "repository": "software.example.org",
    "revision": 0,
    "root": {"id": "00" * 32, "level": 0, "plain_size": 400, "stored_size": 300},
    "size_bytes": 0,
}


def manifest(comment: str, rule: str, *without: str, data: bytes = b"", **values: object) -> str:
    document = {key: value for key, value in {**_MANIFEST, **values}.items() if key not in without}
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return vector("manifest", comment, rule, [data or text.encode()])


def manifests() -> Iterable[str]:
    text = json.dumps(_MANIFEST).encode()
    root: dict[str, Any] = dict(_MANIFEST["root"])  # type: ignore[call-overload]
    parent = {key: value for key, value in root.items() if key != "level"}
    yield manifest("First revision", "")
    yield manifest(
        "Everything", "", revision=2**63 - 1, parent=parent, message="Größe, 大小, 🐍\n", size_bytes=2**63 - 1
    )
    yield manifest("Optional keys missing", "", "features", "parent", "message")
    future: dict[str, Any] = {"x-note": [1.5, {"deep": None}], "root": {**root, "hash": "future"}}
    yield manifest("Unknown keys", "", **future)
    yield manifest("One line", "", data=text)
    yield manifest("Exactly 64 KiB", "", data=text.ljust(65536))
    yield manifest("Message of 4096 characters", "", message="\N{SNAKE}" * 4096)
    yield manifest("Repository name of one letter", "", repository="a")
    yield manifest("Repository name of 255 characters", "", repository="a" * 255)
    yield manifest("Over 64 KiB", "J1", data=text.ljust(65537))
    line = [ancestor(number) for number in (0, 16, 17)]
    yield manifest("Ancestors", "", revision=18, ancestors=line, parent=parent_of(line))
    yield manifest("Ancestors of one moment", "", revision=2, ancestors=[ancestor(1)], parent=parent_of([ancestor(1)]))
    unknown = [{**ancestor(1), "x-note": 1.5}]
    yield manifest("Unknown key in an ancestor", "", revision=2, ancestors=unknown, parent=parent_of(unknown))
    yield from bad_json(text)
    yield from bad_members(root, parent)
    yield from bad_ancestors()


def ancestor(revision: int, published_s: int = 1_700_000_000, **values: object) -> dict[str, Any]:
    id_ = blake(b"%d" % revision).hex()
    return {
        "id": id_,
        "plain_size": 400,
        "stored_size": 300,
        "published_s": published_s,
        "revision": revision,
        **values,
    }


def parent_of(ancestors: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: ancestors[-1][key] for key in ("id", "stored_size", "plain_size")}


def bad_ancestors() -> Iterable[str]:
    lines = {
        "Ancestors not ascending": [ancestor(2), ancestor(1)],
        "Ancestor twice": [ancestor(1), ancestor(1)],
        "Ancestor of the same revision": [ancestor(1), ancestor(18)],
        "Ancestor after the revision": [ancestor(1), ancestor(19)],
        "Ancestors that go back in time": [ancestor(1, 1_600_000_001), ancestor(2, 1_600_000_000)],
        "Ancestor published after the revision": [ancestor(1), ancestor(2, 1_700_000_001)],
    }
    for comment, line in lines.items():
        yield manifest(comment, "J9", revision=18, ancestors=line, parent=parent_of(line))
    yield manifest("Ancestors without a parent", "J9", revision=18, ancestors=[ancestor(1)])
    other = parent_of([ancestor(2)])
    yield manifest("Last ancestor that is not the parent", "J9", revision=18, ancestors=[ancestor(1)], parent=other)
    wrong = [None, {}, [ancestor(1)["id"]], [None], [{**ancestor(1), "revision": -1}], [ancestor(1, 2**63)]]
    for number, value in enumerate(wrong, 1):
        yield manifest(f"Wrong ancestors {number}", "J6", revision=18, ancestors=value, parent=other)
    yield manifest("Wrong id of an ancestor", "J8", revision=18, ancestors=[ancestor(1, id="AA" * 32)], parent=other)


# Tags


def tag_document(comment: str, rule: str, named: object, **values: object) -> str:
    text = json.dumps({"format": 1, "tags": named, **values}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return vector("tags", comment, rule, [text.encode()])


def tags() -> Iterable[str]:
    one = {"v1": ancestor(1)}
    yield tag_document("No tags", "", {})
    yield tag_document("Names of all kinds", "", {name: ancestor(7) for name in ("a", "Z" * 64, "2024.1", "1+b_c-d")})
    yield tag_document("Unknown keys in tags", "", {"v1": {**ancestor(1), "x-note": None}}, **{"x-a": [1.5]})
    yield vector("tags", "Tags over 1 MiB", "J1", [json.dumps({"format": 1, "tags": one}).encode().ljust(MIB + 1)])
    yield vector("tags", "Tags that are a web page", "J2", [b"<html>"])
    yield vector("tags", "Tags nested thirty thousand deep", "J2", [b'{"format": 1, "tags": ' + b"[" * 30_000])
    twice = json.dumps(one)[1:-1]
    yield vector("tags", "Tag twice", "J3", [f'{{"format": 1, "tags": {{{twice}, {twice}}}}}'.encode()])
    yield tag_document("Tags of format 2", "J4", one, format=2)
    yield vector("tags", "Format without tags", "J6", [b'{"format": 1}'])
    for number, value in enumerate([None, [], {"v1": None}, {"v1": 1}, {"v1": {**ancestor(1), "revision": "1"}}], 1):
        yield tag_document(f"Wrong tags {number}", "J6", value)
    yield tag_document("Wrong id of a tag", "J8", {"v1": ancestor(1, id="")})
    for number, name in enumerate(["", "1", "0123", ".a", "-a", "+a", "a b", "a/b", "a@b", "a\n", "ä", "a" * 65], 1):
        yield tag_document(f"Wrong name of a tag {number}", "J11", {name: ancestor(1)})
    yield tag_document("Tag stored more than plain", "B1", {"v1": ancestor(1, stored_size=401)})


def histories() -> Iterable[str]:
    def pair(comment: str, rule: str, **found: object) -> str:
        line = [ancestor(0), ancestor(1)]
        later = json.dumps({**_MANIFEST, "revision": 2, "ancestors": line, "parent": parent_of(line)})
        earlier = json.dumps({**_MANIFEST, "revision": 1, **found})
        return vector("history", comment, rule, [later.encode(), earlier.encode()])

    yield pair("Ancestor as was said", "")
    yield pair("Ancestor of another number", "J10", revision=0)
    yield pair("Ancestor that is the revision itself", "J10", revision=2)
    yield pair("Ancestor of another moment", "J10", published_s=1_699_999_999)
    yield pair("Ancestor of another repository", "J10", repository="other.example.org")


def bad_json(text: bytes) -> Iterable[str]:
    for comment, data in {
        "HTML": b"<!DOCTYPE html><title>404</title>",
        "Cut short": text[:-1],
        "Second document behind": text + b"{}",
        "Array": b"[" + text + b"]",
        "Byte order mark": b"\xef\xbb\xbf" + text,
        "UTF-16": text.decode().encode("utf-16"),
        "Not UTF-8": text.replace(b'"message": ""', b'"message": "\xff"'),
        "Not UTF-8 in an unknown key": text.replace(b"{", b'{"x-a": "\xff", ', 1),
        "Half a surrogate pair": text.replace(b'"message": ""', b'"message": "\\ud800"'),
        "NaN": text.replace(b"{", b'{"x-a": NaN, ', 1),
        "Infinity": text.replace(b"{", b'{"x-a": -Infinity, ', 1),
        "Nested thirty thousand deep": text.replace(b"{", b'{"x-a": ' + b"[" * 30_000 + b"]" * 30_000 + b", ", 1),
        "Comma behind the last member": text[:-1] + b",}",
    }.items():
        assert data != text
        yield manifest(comment, "J2", data=data)
    yield manifest("Revision twice", "J3", data=text.replace(b"{", b'{"revision": 1, ', 1))
    yield manifest("Unknown key twice", "J3", data=text.replace(b"{", b'{"x-a": 1, "x-a": 1, ', 1))
    yield manifest("Key twice once it is unescaped", "J3", data=text.replace(b"{", b'{"rev\\u0069sion": 0, ', 1))
    yield manifest("Root id twice", "J3", data=text.replace(b'"level"', b'"id": "' + b"11" * 32 + b'", "level"'))


def bad_members(root: dict[str, Any], parent: dict[str, Any]) -> Iterable[str]:
    yield manifest("Format 2", "J4", format=2)
    yield manifest("Format 0", "J4", format=0)
    yield manifest("Format 2 without anything else", "J4", data=b'{"format": 2}')
    yield manifest("Unknown feature", "J5", features=["post-quantum"])
    for key in ("format", "repository", "revision", "published_s", "root", "entries", "size_bytes"):
        yield manifest(f"Without {key}", "J6", key)
    wrong: dict[str, list[Any]] = {
        "format": ["1", 1.0, None],
        "features": ["none", None, [1]],
        "revision": [-1, 2**63, "0", 1.0, True, None],
        "published_s": [-1, 2**63],
        "entries": [0, 2**63],
        "size_bytes": [-1],
        "repository": [None, 1, "a." * 127 + "aa"],
        "message": [None, "x" * 4097],
        "root": [None, "00" * 32, [], {**root, "level": 17}, {**root, "level": -1}, parent],
        "parent": [False, {"id": "00" * 32}],
    }
    for key, values in wrong.items():
        for number, value in enumerate(values, 1):
            yield manifest(f"Wrong {key} {number}", "J6", **{key: value})
    names = ["", ".", "a..b", "-a", "a-", "a.-b", "a.", ".a", "A", "a_b", "a/b", "a b", "ä", "a\n"]
    for number, name in enumerate(names, 1):
        yield manifest(f"Wrong repository name {number}", "J7", repository=name)
    for number, id_ in enumerate(["", "00" * 31, "00" * 33, "AA" * 32, "0x" + "00" * 31, "0g" * 32], 1):
        yield manifest(f"Wrong root id {number}", "J8", root={**root, "id": id_})
    yield manifest("Wrong parent id", "J8", parent={**parent, "id": ""})
    yield manifest("Root stored more than plain", "B1", root={**root, "stored_size": 401})
    yield manifest("Root of size 0", "B1", root={**root, "stored_size": 0, "plain_size": 0})
    yield manifest("Root over the limit", "B1", root={**root, "plain_size": 16 * MIB + 1})


# The repository


class Packs:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def put(self, plain: bytes) -> BlobRef:
        ref, stored = hand_seal(plain)
        name = ref.id.hex()
        self.files[f"data/{name[:2]}/{name[2:]}"] = stored
        return ref


def repository() -> dict[str, bytes]:
    """A small store with two levels of pages, by path."""
    files: dict[str, bytes] = {}
    packs = Packs(files)
    empty = build([record(b"", b"", 0o40755, nlink=2)], packs.put)
    first = Manifest("vectors.example.org", 0, 1_600_000_000, empty.page, empty.level, empty.summary, None)
    parent = packs.put(encode_manifest(first))
    root = build(sorted(records(packs), key=lambda r: (r.directory.replace(b"/", b"\0"), r.entry.name)), packs.put)
    last = Manifest(
        "vectors.example.org",
        1,
        1_700_000_000,
        root.page,
        root.level,
        root.summary,
        parent,
        "For readers",
        ancestors_after(first, parent),
    )
    return {**files, "manifest.json": encode_manifest(last)}


def record(directory: bytes, name: bytes, mode: int, content: Content = NO_CONTENT, **values: Any) -> Record:
    fields: dict[str, Any] = {"uid": 0, "gid": 0, "mtime_ns": 1_700_000_000_000_000_001, "size": 0, "nlink": 1}
    fields |= {"link_group": 0, "rdev": 0, "content_id": b"", "target": b"", "xattrs": (), **values}
    return Record(directory, Entry(name=name, mode=mode, **fields), content)


def regular(directory: bytes, name: bytes, data: bytes, content: Content, **values: Any) -> Record:
    return record(directory, name, 0o100644, content, size=len(data), content_id=blake(data), **values)


def records(packs: Packs) -> Iterable[Record]:
    yield record(b"", b"", 0o40755, nlink=5)
    yield from small_files(packs)
    yield from large_files(packs)
    yield from special_files()
    yield record(b"", b"many", 0o40755, nlink=2)
    for number in range(700):
        yield record(b"many", b"n" * 120 + b"%04d" % number, 0o10600, mtime_ns=-number)


def small_files(packs: Packs) -> Iterable[Record]:
    data = {b"hello.txt": b"hello\n", b"spaces": b" " * 3000, b"\xff\n": bytes(range(256))}
    packed = packs.put(b"".join(data.values()))
    offset = 0
    for name, plain in data.items():
        content = Content((Location(0, len(plain), packed, offset, b""),))
        yield regular(b"", name, plain, content)
        if name == b"hello.txt":
            for directory in (b"a/b", b"a-b"):
                yield regular(directory, b"hard", plain, content, nlink=2, link_group=77)
        offset += len(plain)
    yield regular(b"a", b"empty", b"", NO_CONTENT, xattrs=((b"user.a", b"\0\xff"), (b"user.b", b"")))
    yield record(b"", b"a", 0o41777, nlink=3)
    yield record(b"a", b"b", 0o42755, nlink=2)
    yield record(b"", b"a-b", 0o40700, nlink=2, uid=1000, gid=2**32 - 2)


def large_files(packs: Packs) -> Iterable[Record]:
    chunks = [b"first" * 100, b"second" * 100, b"third" * 100]
    packed = packs.put(b"".join(chunks))
    offsets = [4096, 8192, 100_000]
    whole = bytearray(120_000)
    locations = []
    at = 0
    for offset, chunk in zip(offsets, chunks, strict=True):
        whole[offset : offset + len(chunk)] = chunk
        locations.append(Location(offset, len(chunk), packed, at, blake(chunk)))
        at += len(chunk)
    yield regular(b"", b"sparse", bytes(whole), Content(tuple(locations)))
    paged = ((4096, packs.put(encode_locations(locations[:2]))), (100_000, packs.put(encode_locations(locations[2:]))))
    yield regular(b"", b"sparse-with-pages", bytes(whole), Content((), paged))
    yield regular(b"", b"zeros", bytes(1_000_000), NO_CONTENT)


def special_files() -> Iterable[Record]:
    yield record(b"a", b"symlink", 0o120777, size=9, target=b"../\xfe/else")
    yield record(b"a", b"null", 0o20666, rdev=0x103, mtime_ns=-(2**62))
    yield record(b"a", b"disk", 0o60660, rdev=0x800, mtime_ns=2**62)
    yield record(b"a", b"socket", 0o140755)


if __name__ == "__main__":
    main()
