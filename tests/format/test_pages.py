"""Pages: one legal encoding, and nothing but FormatError for anything else."""

import subprocess
import sys
import time

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cvfs.errors import FormatError
from cvfs.format.pages import (
    Child,
    Inner,
    Leaf,
    LocationPage,
    decode_page,
    encode_inner,
    encode_leaf,
    encode_locations,
    key_of,
)
from cvfs.limits import MAX_LOCATIONS, MAX_PAGE_BYTES
from cvfs.model import BlobRef, Location, Record
from tests.format import independent_reader
from tests.format.make_vectors import PACK, entry, leaf, one, pack, place
from tests.format.test_vectors import encoded
from tests.format.trees import digests, names, packs, paths, trees

children = st.lists(st.tuples(paths, names, packs), min_size=1, max_size=8).map(
    lambda found: [
        Child(directory, name, blob, 1 + len(directory), len(name))
        for (directory, name), blob in sorted(
            {(directory, name): blob for directory, name, blob in found}.items(), key=lambda item: key_of(*item[0])
        )
    ]
)
runs = st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 1000), packs, digests), min_size=1, max_size=8)


def locations(found: list[tuple[int, int, BlobRef, bytes]]) -> list[Location]:
    end, made = 0, []
    for hole, length, ref, chunk_id in found:
        made.append(Location(end + hole, length, ref, hole % 1000, chunk_id))
        end += hole + length
    return made


plain_pages = st.one_of(
    trees.map(encode_leaf),
    st.tuples(st.integers(1, 16), children).map(lambda page: encode_inner(*page)),
    runs.map(locations).map(encode_locations),
)


@given(trees)
def test_leaf_round_trip(records: list[Record]) -> None:
    page = decode_page(encode_leaf(records))
    assert isinstance(page, Leaf)
    assert list(page.records()) == records


@given(st.integers(1, 16), children)
def test_inner_round_trip(level: int, made: list[Child]) -> None:
    page = decode_page(encode_inner(level, made))
    assert page == Inner(level, tuple(made), [key_of(child.directory, child.name) for child in made])


@given(runs.map(locations))
def test_location_page_round_trip(made: list[Location]) -> None:
    assert decode_page(encode_locations(made)) == LocationPage(tuple(made))


@given(plain_pages, st.data())
def test_no_other_bytes_mean_the_same(plain: bytes, data: st.DataObject) -> None:
    """A changed page is refused, or it says something else, for which it is the only encoding; both readers agree."""
    at = data.draw(st.integers(0, len(plain) - 1))
    changed = plain[:at] + bytes([plain[at] ^ data.draw(st.integers(1, 255))]) + plain[at + 1 :]
    assert_readers_agree(changed)


@given(plain_pages, st.data())
def test_no_structure_but_the_legal_one_is_read(plain: bytes, data: st.DataObject) -> None:
    """One value somewhere in the page replaced, dropped or doubled, and the whole encoded canonically."""
    value = independent_reader.unpack(plain)
    node = value
    while True:
        at = data.draw(st.integers(0, len(node) - 1))
        inside = node[at]
        if not isinstance(inside, list) or not inside or data.draw(st.integers(0, 5)) == 0:
            break
        node = inside
    node[at : at + 1] = data.draw(st.one_of(st.just([]), st.just([inside, inside]), st.tuples(odd_values).map(list)))
    assert_readers_agree(pack(value))


odd_values = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([-1, 0, 1, 2**32 - 1, 2**32, 2**50, 2**50 + 1, 2**63 - 1, 2**63, 16 << 20, (16 << 20) + 1]),
    st.sampled_from([b"", b".", b"..", b"/", b"\0", b"a/b", b"a//b", bytes(31), bytes(32), bytes(33), b"n" * 256]),
    st.just([]),
)


def assert_readers_agree(plain: bytes) -> None:
    try:
        page = decode_page(plain)
    except FormatError:
        with pytest.raises(independent_reader.Refused):
            independent_reader.read_page(plain)
    else:
        assert encoded(page) == plain
        independent_reader.read_page(plain)


@given(plain_pages)
def test_every_truncation_is_refused(plain: bytes) -> None:
    for end in range(len(plain)):
        with pytest.raises(FormatError):
            decode_page(plain[:end])


@given(plain_pages, st.binary(min_size=1, max_size=40))
def test_trailing_bytes_are_refused(plain: bytes, more: bytes) -> None:
    with pytest.raises(FormatError):
        decode_page(plain + more)


@given(st.binary(max_size=300))
@example(b"\x93\x00\x90\x90")
def test_random_bytes(data: bytes) -> None:
    assert_refused_or_canonical(data)


simple = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.binary(max_size=40), st.text(max_size=9)
)
structures = st.recursive(
    simple, lambda inner: st.lists(inner, max_size=13) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@given(structures, st.sampled_from([None, 0, 1, 2]))
def test_random_structures(value: object, kind: int | None) -> None:
    assert_refused_or_canonical(msgspec.msgpack.encode(value if kind is None else [kind, value, value]))


def assert_refused_or_canonical(data: bytes) -> None:
    try:
        page = decode_page(data)
    except FormatError:
        return
    assert encoded(page) == data


def test_too_many_locations() -> None:
    places = [place(i, 1, chunk=bytes(32)) for i in range(MAX_LOCATIONS)]
    decode_page(pack([2, [PACK], places]))
    decode_page(pack(one(entry(size=MAX_LOCATIONS), [places, []], [PACK])))
    places.append(place(MAX_LOCATIONS, 1, chunk=bytes(32)))
    for value in ([2, [PACK], places], one(entry(size=MAX_LOCATIONS + 1), [places, []], [PACK])):
        with pytest.raises(FormatError):
            decode_page(pack(value))


# Bombs: in a process of its own, since the limit stays for good

_BOMB = """
import resource, sys
from cvfs.errors import FormatError
from cvfs.format.pages import decode_page
data = sys.stdin.buffer.read()
free = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + {room}
resource.setrlimit(resource.RLIMIT_AS, (free, free))
try:
    decode_page(data)
except FormatError:
    sys.exit(7)
"""


def decode_with_little_memory(data: bytes, room_bytes: int) -> int:
    script = _BOMB.format(room=room_bytes)
    return subprocess.run([sys.executable, "-c", script], input=data, check=False, timeout=60).returncode


HUGE = b"\xff\xff\xff\xff"


@pytest.mark.parametrize("size", [4_000_000, 2**32 - 1])
@pytest.mark.parametrize(
    "before",
    [b"", b"\x93\x00", b"\x93\x00\x90", b"\x93\x00\x90\x91\x93\xc4\x01d", b"\x93\x01\x01", b"\x93\x02\x90"],
    ids=["page", "packs", "groups", "entries", "children", "locations"],
)
def test_announced_length_costs_no_memory(before: bytes, size: int) -> None:
    data = before + b"\xdd" + size.to_bytes(4, "big")
    assert decode_with_little_memory(data, 8 << 20) == 7
    assert decode_with_little_memory(before + b"\xc6" + size.to_bytes(4, "big"), 8 << 20) == 7


@pytest.mark.parametrize("filler", [b"\x00", b"\x90", b"\xc0", b"\xdd" + HUGE, b"\xc4\x00"], ids=bytes.hex)
@pytest.mark.parametrize("before", [b"\x93\x00\x90\x91\x93\xc4\x01d", b"\x93\x00", b"\x93\x01\x01"])
def test_page_at_the_limit_costs_bounded_memory(before: bytes, filler: bytes) -> None:
    """An array as long as the page allows."""
    rest = MAX_PAGE_BYTES - len(before) - 5
    data = before + b"\xdd" + rest.to_bytes(4, "big") + filler * (rest // len(filler))
    assert decode_with_little_memory(data, 64 << 20) == 7


def densest_page() -> bytes:
    """A page at the limit of attributes as short as can be: what costs most memory for a byte."""
    attributes = [[i.to_bytes(3, "big").replace(b"\0", b"\x80"), b""] for i in range(0x010000, 0x010000 + 80_000)]
    unique = [[name, b""] for name in sorted({name for name, _ in attributes})]
    single = pack(entry(b"000000", xattrs=unique))
    count = (MAX_PAGE_BYTES - 100) // (len(single) + 1)
    return pack(leaf([b"d", [entry(b"%06d" % i, xattrs=unique) for i in range(count)], [None] * count]))


def test_densest_legal_page() -> None:
    data = densest_page()
    assert len(data) > MAX_PAGE_BYTES // 2
    start_s = time.process_time()
    decode_page(data)
    assert time.process_time() - start_s < 10
    assert decode_with_little_memory(data, 25 * MAX_PAGE_BYTES) == 0


@pytest.mark.parametrize("deep", [b"\x91" * 3_000_000, b"\x93\x00\x90\x91\x93\xc4\x01d" + b"\x91" * 3_000_000])
def test_depth_costs_nothing(deep: bytes) -> None:
    assert decode_with_little_memory(deep, 32 << 20) == 7


def test_memory_is_measured() -> None:
    """The bombs above would be noticed: a legal page does not fit into next to nothing."""
    assert decode_with_little_memory(densest_page(), 4 << 20) not in (0, 7)
