"""Trees of real size: what a change costs, how large pages are."""

import random
from functools import cache

import pytest

from cvfs.format.blob import digest
from cvfs.format.pages import Inner, decode_page, encode_leaf
from cvfs.format.tree import Root, diff, edit
from cvfs.format.tree.boundaries import MAX_WEIGHT, MIN_WEIGHT, Cutter, directory_weight, record_weight
from cvfs.limits import MAX_LOCATIONS, MAX_PAGE_BYTES
from cvfs.model import Content, Location, Record
from tests.format.trees import ROOT, Store, by_key, directory, entry, file, pack

MANY = 100_000


@cache
def many() -> tuple[list[Record], Store, Root]:
    """A software tree of 100,000 records: 12 files in each directory."""
    records = [ROOT]
    for number in range(MANY // 13):
        parent = b"lib/d%05d" % number
        records.append(directory(b"lib", b"d%05d" % number))
        records += [file(parent, b"file-%d.py" % i, 12 * number + i, number // 30) for i in range(12)]
    store = Store()
    records = by_key(records)
    return records, store, store.build(records)


def test_a_small_change_costs_a_few_pages() -> None:
    records, store, root = many()
    inner_pages = sum(isinstance(store.load(ref), Inner) for ref in store.tree(root).pages())
    known = set(store.pages)
    chance = random.Random(1)
    written, loaded, compared = [], [], []
    for number in range(40):
        old = chance.choice([record for record in records if record.entry.is_regular])
        store.reset()
        new = edit(store.tree(root), store.load, store.put, [file(old.directory, b"new", number, 7)])
        written.append(len({ref.id for ref in store.puts} - known))
        loaded.append(len(store.loads))
        store.reset()
        assert len(list(diff(store.tree(root), store.tree(new), store.load))) == 1
        compared.append(len(store.loads))
    assert sorted(written)[20] <= root.level + 2
    assert max(written) <= root.level + 8
    assert sorted(loaded)[20] <= inner_pages + 4
    assert sorted(compared)[20] <= 2 * (root.level + 3)


def test_page_sizes() -> None:
    _, store, root = many()
    sizes = sorted(ref.plain_size for ref in store.tree(root).pages())
    assert root.level == 1
    assert 40_000 < sizes[len(sizes) // 2] < 110_000
    assert len([size for size in sizes if size < 15_000]) <= root.level + 2
    assert sizes[-1] < 250_000


def test_directory_of_200000_names() -> None:
    store = Store()
    records = [ROOT, *(file(b"", b"%06d" % i, i, i // 1000) for i in range(200_000))]
    root = store.build(records)
    store.reset()
    found = store.tree(root).find(b"", b"123456")
    assert found is not None
    assert len(store.loads) == root.level + 1
    names: list[bytes] = []
    while run := store.tree(root).listing(b"", names[-1] if names else b""):
        names += run.group.names[run.index :]
    assert len(names) == 200_000
    assert names == sorted(names)


def test_deep_directories_of_one_file_each() -> None:
    """Their paths are most of a page: 4,000 bytes for a record of 85."""
    parents = [b"/".join([b"%06d" % i + b"d" * 240] * 16) for i in range(6000)]
    store = Store()
    root = store.build([ROOT, *(Record(parent, entry(b"f", 0o10644), Content()) for parent in parents)])
    sizes = sorted(ref.plain_size for ref in store.tree(root).pages())
    assert sizes[-1] < MAX_WEIGHT + 5000
    assert sizes[len(sizes) // 2] < 200_000


def worst_record(number: int) -> Record:
    """As much in it as the limits allow, of what is longest encoded for its weight."""
    attributes = tuple((bytes(pair), b"") for pair in sorted((a, b) for a in range(1, 256) for b in range(1, 256)))
    places = tuple(Location(2**40 + 70000 * i, 65536, pack(i), 0, digest(b"")) for i in range(MAX_LOCATIONS))
    values = {"uid": 2**32 - 2, "gid": 2**32 - 2, "mtime_ns": -(2**63), "nlink": 2**32 - 1, "link_group": 2**63 - 1}
    made = entry(b"%0255d" % number, 0o100644, size=2**50, content_id=digest(b""), xattrs=attributes, **values)
    return Record(b"d" * 255, made, Content(places))


def test_no_cut_makes_a_page_over_the_limit() -> None:
    """The most that can stand before a record that must end its page, and the largest record of all."""
    dense = tuple((bytes([a, b]), b"") for a in range(1, 256) for b in range(1, 256))[:50_000]
    filler = [
        Record(b"d", entry(b"%06d" % number, 0o10644, xattrs=dense), Content())
        for number in range(MAX_WEIGHT // (80 + 6 + 2 * len(dense)))
    ]
    assert sum(map(record_weight, filler)) < MAX_WEIGHT
    page = encode_leaf([*filler, worst_record(1)])
    assert len(page) < 3 * (1 << 20) < MAX_PAGE_BYTES
    decode_page(page)


@pytest.mark.parametrize("level", [0, 1, 16])
def test_cutter_keeps_to_its_limits(level: int) -> None:
    chance = random.Random(level)
    cutter, total = Cutter(level), 0
    for number in range(50_000):
        weight = chance.choice([85, 130, 130, 130, 300, 4500])
        total += weight
        if cutter.ends_page(b"d%d" % (number // 100), b"%d" % number, weight):
            assert total >= MIN_WEIGHT
            total = 0
        assert total < MAX_WEIGHT


def test_a_directory_weighs_what_it_takes() -> None:
    record = Record(b"d" * 200, entry(b"f", 0o10644), Content())
    longer = Record(b"d" * 250, record.entry, Content())
    assert len(encode_leaf([longer])) - len(encode_leaf([record])) == 50
    assert directory_weight(longer.directory) - directory_weight(record.directory) == 50
