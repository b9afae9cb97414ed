"""The tree against brute force, with pages so small that a few records make several levels."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvfs.errors import FormatError
from cvfs.format.pages import Child, Inner, Key, Leaf, encode_inner, encode_leaf, key_of
from cvfs.format.tree import Root, Tree, boundaries, diff, edit, lookup
from cvfs.format.tree.boundaries import child_weight, record_weight
from cvfs.model import BlobRef, Record, join
from tests.format import independent_reader
from tests.format.trees import ROOT, Store, by_key, directory, file, key, trees


@pytest.fixture(scope="module", autouse=True)
def _small_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("MIN", 300), ("TARGET", 600), ("MAX", 2000)):
            patch.setattr(boundaries, f"{name}_WEIGHT", value)
        patch.setattr(boundaries, "_SCARCE", 2400)
        patch.setattr(boundaries, "_FREQUENT", 150)
        yield


# Neighbours of the slash on both sides, so that the order of directories matters.
PARTS = [b"a", b"a-b", b"a!", b"a\x01", b"a0", b"b", b"-", b"\xff"]
near_paths = st.lists(st.sampled_from(PARTS), max_size=3).map(b"/".join)
near_names = st.sampled_from(PARTS) | st.integers(0, 40).map(lambda number: b"n%02d" % number)
near_records = st.builds(file, near_paths, near_names, st.integers(0, 3), st.integers(0, 2)) | st.builds(
    directory, near_paths, near_names
)


def near_tree(count: int, seed: int) -> list[Record]:
    """Some records like those above; a list of that many values drawn one by one would take Hypothesis a second."""
    chance = random.Random(seed)
    made = [ROOT]
    for _ in range(count):
        parent = b"/".join(chance.choices(PARTS, k=chance.randrange(4)))
        name = chance.choice([*PARTS, b"n%02d" % chance.randrange(40)])
        kind = chance.randrange(4)
        made.append(file(parent, name, kind, chance.randrange(3)) if kind else directory(parent, name))
    return by_key(made)


record_lists = st.builds(near_tree, st.integers(0, 150), st.integers(0, 1 << 32))
small_lists = st.lists(near_records, max_size=6).map(by_key)


def removed(records: list[Record], path: bytes) -> list[Record]:
    return [r for r in records if path and r.path != path and not r.path.startswith(path + b"/")]


def changes(old: list[Record], new: list[Record]) -> list[tuple[Record | None, Record | None]]:
    before, after = ({key(record): record for record in found} for found in (old, new))
    pairs = [(before.get(place), after.get(place)) for place in sorted(before | after)]
    return [(a, b) for a, b in pairs if a is None or b is None or a.entry != b.entry]


def edit_tree(store: Store, root: Root, upserts: list[Record], without: bytes | None = None) -> Root:
    return edit(store.tree(root), store.load, store.put, upserts, without)


@given(record_lists | trees)
def test_what_was_built_is_read(records: list[Record]) -> None:
    store = Store()
    root = store.build(records)
    assert list(store.tree(root).records()) == records
    assert root.summary.entries == len(records)
    assert root.summary.size_bytes == sum(r.entry.size for r in records if r.entry.is_regular)


@given(record_lists | trees)
def test_independent_reader_reads_the_same_tree(records: list[Record]) -> None:
    store = Store()
    root = store.build(records)
    ref = independent_reader.Ref(root.page.id, root.page.stored_size, root.page.plain_size)
    walked = independent_reader.walk(lambda ref: store.pages[ref.id], ref, root.level)  # type: ignore[index]
    assert [record.path for record in walked] == [record.path for record in records]


@given(record_lists, st.integers(0, 1 << 32))
def test_same_records_same_root_whatever_the_order_of_edits(records: list[Record], seed: int) -> None:
    store = Store()
    wanted = store.build(records)
    rest = records[1:]
    random.Random(seed).shuffle(rest)
    root = store.build([ROOT])
    while rest:
        some, rest = rest[:7], rest[7:]
        root = edit_tree(store, root, by_key(some))
    assert root == wanted


@given(record_lists, st.lists(st.tuples(small_lists, st.none() | near_paths), min_size=1, max_size=4))
def test_edit_is_build_of_the_result(records: list[Record], edits: list[tuple[list[Record], bytes | None]]) -> None:
    store = Store()
    root = store.build(records)
    for upserts, gone in edits:
        if gone == b"":
            upserts = [ROOT, *upserts]
        root = edit_tree(store, root, upserts, gone)
        records = by_key([*(records if gone is None else removed(records, gone)), *upserts])
        assert root == store.build(records)
        assert list(store.tree(root).records()) == records


@given(record_lists, near_paths.filter(bool))
def test_subtree_goes_and_its_neighbours_stay(records: list[Record], path: bytes) -> None:
    store = Store()
    parent, _, name = path.rpartition(b"/")
    around = [path, path + b"-b", path + b"!", path + b"\x01", path + b"0"]
    near = [file(join(place, b"deep"), b"f") for place in around] + [file(place, b"f") for place in around]
    near += [directory(parent, name + suffix) for suffix in (b"", b"-b", b"!", b"\x01", b"0")]
    records = by_key([*records, *near])
    root = edit_tree(store, store.build(records), [], path)
    left = list(store.tree(root).records())
    assert left == removed(records, path)
    assert len(records) - len(left) >= 3
    assert {record.path for record in near} - {record.path for record in left} == {
        path,
        path + b"/f",
        path + b"/deep/f",
    }


@given(record_lists)
def test_lookup(records: list[Record]) -> None:
    store = Store()
    tree = store.tree(store.build(records))
    for record in records:
        found = tree.find_path(record.path)
        assert found is not None
        assert found.record == record
    present = {record.path for record in records}
    for path in {record.path + b"x" for record in records} | {b"no", b"a/no/no", b"\xff" * 9} - present:
        assert path in present or tree.find_path(path) is None


@given(record_lists, near_paths, near_names | st.just(b""))
def test_seek_and_walk_from_anywhere(records: list[Record], parent: bytes, name: bytes) -> None:
    store = Store()
    tree = store.tree(store.build(records))
    start = key_of(parent, name)
    behind = [record for record in records if key(record) >= start]
    assert list(tree.records(start)) == behind
    found = tree.seek(start)
    assert (found and found.record) == (behind[0] if behind else None)


@given(record_lists, near_paths)
def test_listing_page_by_page(records: list[Record], parent: bytes) -> None:
    store = Store()
    tree = store.tree(store.build(records))
    listed: list[bytes] = []
    while found := tree.listing(parent, listed[-1] if listed else b""):
        listed += found.group.names[found.index :]
    assert listed == [r.entry.name for r in records if r.directory == parent and r.entry.name]


@pytest.mark.parametrize("remembered", [1, 3, 1000])
@given(record_lists, st.lists(st.tuples(near_paths, near_names | st.just(b""), st.booleans()), max_size=40))
def test_no_question_changes_the_answer_to_another(
    remembered: int, records: list[Record], questions: list[tuple[bytes, bytes, bool]]
) -> None:
    """A tree remembers where names stand: of present ones, of absent ones, of those on the edge of a page."""
    store = Store()
    tree = store.tree(store.build(records))
    by_path = {(record.directory, record.entry.name): record for record in records}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "_RUNS", remembered)
        for parent, name, is_listing in questions:
            if is_listing:
                found = tree.listing(parent, name)
                behind = [r for r in records if r.directory == parent and r.entry.name > name]
                wanted = behind[0] if behind else None
            else:
                found, wanted = tree.find(parent, name), by_path.get((parent, name))
            assert (found and found.record) == wanted
            assert sum(len(runs._runs) for runs in tree._runs.values()) == tree._known <= remembered


def test_neighbours_are_found_without_a_descent() -> None:
    store = Store()
    names = [b"n%03d" % number for number in range(150)]
    root = store.build(by_key([ROOT, directory(b"", b"d"), *(file(b"d", name) for name in names)]))
    tree = store.tree(root)
    leaves = sum(isinstance(store.load(ref), Leaf) for ref in tree.pages())
    assert root.level >= 2
    assert leaves > 3
    store.reset()
    random.Random(1).shuffle(names)
    for name in names:
        assert tree.find(b"d", name) is not None
        assert tree.find(b"d", name + b"-absent") is None
    assert len(store.loads) <= 2 * len(names) + leaves * root.level


def test_end_of_a_listing_is_known_without_the_page_behind_it() -> None:
    store = Store()
    root = store.build(by_key([ROOT, *(file(b"d%03d" % (i // 9), b"n%03d" % i) for i in range(150))]))
    tree = store.tree(root)
    found = tree.listing(b"d003")
    while found is not None:
        store.reset()
        last = found.group.names[-1]
        page = found.page
        found = tree.listing(b"d003", last)
    loads = list(store.loads)
    assert [ref for ref in loads if isinstance(store.load(ref), Leaf)] == [page]


@given(record_lists, small_lists, st.none() | near_paths.filter(bool))
def test_diff(records: list[Record], upserts: list[Record], gone: bytes | None) -> None:
    store = Store()
    old = store.build(records)
    new = edit_tree(store, old, upserts, gone)
    after = list(store.tree(new).records())
    assert list(diff(store.tree(old), store.tree(new), store.load)) == changes(records, after)
    assert list(diff(store.tree(new), store.tree(old), store.load)) == changes(after, records)


@given(record_lists, small_lists, st.none() | near_paths.filter(bool))
def test_diff_loads_no_page_that_both_trees_have(
    records: list[Record], upserts: list[Record], gone: bytes | None
) -> None:
    store = Store()
    old = store.build(records)
    new = edit_tree(store, old, upserts, gone)
    shared = set(store.tree(old).pages()) & set(store.tree(new).pages())
    for one, two in ((old, new), (new, old)):
        store.reset()
        list(diff(store.tree(one), store.tree(two), store.load))
        assert not shared & set(store.loads)


@given(record_lists, record_lists)
def test_diff_of_unrelated_trees(old: list[Record], new: list[Record]) -> None:
    store = Store()
    trees = store.tree(store.build(old)), store.tree(store.build(new))
    assert list(diff(*trees, store.load)) == changes(old, new)


@given(record_lists)
def test_diff_of_equal_trees_loads_nothing(records: list[Record]) -> None:
    store = Store()
    tree = store.tree(store.build(records))
    store.reset()
    assert not list(diff(tree, tree, store.load))
    assert not store.loads


def repacked(record: Record) -> Record:
    return file(record.directory, record.entry.name, 1, 9) if record.entry.is_regular else record


@given(record_lists)
def test_packing_changes_ids_but_not_the_shape(records: list[Record]) -> None:
    records = [
        file(r.directory, r.entry.name, 1, number % 2) if r.entry.is_regular else r for number, r in enumerate(records)
    ]
    store = Store()
    one, two = store.build(records), store.build(list(map(repacked, records)))
    assert shape(store, one) == shape(store, two)
    assert not list(diff(store.tree(one), store.tree(two), store.load))
    assert one.page != two.page or not any(record.entry.is_regular for record in records)


def shape(store: Store, root: Root) -> list[list[Key]]:
    """The keys of each page."""
    pages = [store.load(ref) for ref in store.tree(root).pages()]
    return [
        p.keys if isinstance(p, Inner) else list(map(key, p.records())) for p in pages if isinstance(p, Inner | Leaf)
    ]


@given(record_lists)
def test_pages_are_all_there_is(records: list[Record]) -> None:
    store = Store()
    root = store.build(records)
    assert sorted(store.tree(root).pages()) == sorted(set(store.puts))


def test_without_a_root_directory() -> None:
    for records in ([], [file(b"", b"a")], [directory(b"a", b"b")]):
        with pytest.raises(FormatError):
            Store().build(records)
    store = Store()
    root = store.build([ROOT])
    with pytest.raises(FormatError):
        edit_tree(store, root, [], b"")


def test_pages_that_lie_are_refused_by_every_way_to_walk() -> None:
    """A child that begins elsewhere, reaches too far, or is of another level."""
    store = Store()
    records = by_key([ROOT, *(file(b"d%d" % (i // 3), b"n%03d" % i) for i in range(150))])
    root = store.build(records)
    assert root.level >= 2
    other = store.build(by_key([ROOT, *(file(b"e", b"n%03d" % i) for i in range(150))]))
    honest = store.tree(store.build([ROOT, file(b"d0", b"x")]))
    lies = [Tree(other.page, root.level + 1, store.load), Tree(root.page, root.level - 1, store.load)]
    lies += [swapped(store, root, number, other.page) for number in (0, 1)]
    lies += [swapped(store, root, 1, page.blob) for page in inner(store, root.page).children[:1]]
    for tree in lies:
        for walk in (
            lambda tree: list(tree.records()),
            lambda tree: list(tree.pages()),
            lambda tree: list(diff(tree, honest, store.load)),
            lambda tree: list(diff(honest, tree, store.load)),
            lambda tree: edit(tree, store.load, store.put, [file(b"d0", b"new"), file(b"zz", b"new")]),
        ):
            with pytest.raises(FormatError):
                walk(tree)


def inner(store: Store, ref: BlobRef) -> Inner:
    page = store.load(ref)
    assert isinstance(page, Inner)
    return page


def swapped(store: Store, root: Root, number: int, blob: BlobRef) -> Tree:
    """The tree with another page in the place of one child of the root."""
    page = inner(store, root.page)
    children = list(page.children)
    old = children[number]
    children[number] = Child(old.directory, old.name, blob, old.entries, old.size_bytes)
    return Tree(store.put(encode_inner(root.level, children)), root.level, store.load)


def test_no_tree_without_end() -> None:
    """Pages that name each other twice would make 2^16 walks of 16 pages."""
    store = Store()
    below = store.put(encode_leaf([ROOT]))
    for level in range(1, 17):
        children = [Child(b"", b"", below, 1, 0), Child(b"", b"a", below, 1, 0)]
        below = store.put(encode_inner(level, children))
    tree = Tree(below, 16, store.load)
    store.reset()
    for walk in (tree.records, tree.pages, lambda: diff(tree, store.tree(store.build([ROOT])), store.load)):
        with pytest.raises(FormatError):
            list(walk())
    assert len(store.loads) < 200


@given(record_lists)
def test_cuts_are_those_of_the_document(records: list[Record]) -> None:
    """With the numbers of the document, which small pages do not have: by the second implementation."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("MIN", 32768), ("TARGET", 98304), ("MAX", 524288)):
            patch.setattr(boundaries, f"{name}_WEIGHT", value)
        patch.setattr(boundaries, "_SCARCE", 393216)
        patch.setattr(boundaries, "_FREQUENT", 24576)
        for level, factor in ((0, 400), (3, 900)):
            keys = [key(record) for record in records]
            weights = [factor * record_weight(record) for record in records]
            cutter = boundaries.Cutter(level)
            ends, last = [], None
            for number, (place, weight) in enumerate(zip(keys, weights, strict=True), 1):
                if level == 0 and (last is None or place.order != last):
                    weight += boundaries.directory_weight(place.order)
                last = place.order
                if cutter.ends_page(place.order, place.name, weight):
                    ends.append(number)
                    last = None
            ends += [len(keys)] * (ends[-1:] != [len(keys)])
            assert ends == independent_reader.cuts(list(map(tuple, keys)), weights, level)


def test_weights_are_those_of_the_document() -> None:
    record = file(b"d", b"name")
    assert record_weight(record) == 80 + 4 + 48
    assert boundaries.directory_weight(b"dir") == 8 + 3
    store = Store()
    root = store.build(by_key([ROOT, *(file(b"d", b"n%03d" % i) for i in range(50))]))
    assert child_weight(inner(store, root.page).children[1]) == 60 + 1 + 4
