"""What is published is what is read back, bit for bit, and the same whoever publishes it."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.publisher.stores import Store
from tests.trees import Directory, File, Link, Special, Symlink, Tree, make_tree, snapshot, trees

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@settings(max_examples=60)
@given(tree=trees())
def test_any_tree_reads_back_as_it_was(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        make_tree(top / "tree", tree)
        store = Store(top / "store")
        report = store.publish(top / "tree")
        assert report.is_published
        assert store.snapshot() == snapshot(top / "tree", count_links=True)
        assert store.manifest.summary.entries == report.counts.files + report.counts.directories + 1


@settings(max_examples=25)
@given(first=trees(12), second=trees(12))
def test_any_tree_after_any_other_is_as_if_published_alone(first: Tree, second: Tree) -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        store, alone = Store(top / "store"), Store(top / "alone")
        make_tree(top / "tree", first)
        store.publish(top / "tree")
        shutil.rmtree(top / "tree")
        make_tree(top / "tree", second)
        store.publish(top / "tree")
        alone.publish(top / "tree")
        assert store.snapshot() == alone.snapshot() == snapshot(top / "tree", count_links=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_special_files_modes_owners_and_capabilities(tmp_path: Path, store: Store) -> None:
    tree: Tree = {
        b"": Directory(mode=0o1777, mtime_ns=-1),
        b"ping": File(data=b"ELF", mode=0o4755, owner=(0, 4294967294), xattrs={b"security.capability": CAPABILITY}),
        b"again/ping": Link(b"ping"),
        b"fifo": Special(kind=stat.S_IFIFO, mode=0o600),
        b"again/fifo": Link(b"fifo"),
        b"null": Special(kind=stat.S_IFCHR, rdev=os.makedev(1, 3), mode=0o666),
        b"disk": Special(kind=stat.S_IFBLK, rdev=os.makedev(4095, 1048575)),
        b"socket": Special(kind=stat.S_IFSOCK),
        b"loop": Symlink(target=b"loop"),
        b"again/loop": Link(b"loop"),
        b"long": Symlink(target=b"x" * 4095),
    }
    make_tree(tmp_path / "tree", tree)
    store.publish(tmp_path / "tree")
    assert store.snapshot() == snapshot(tmp_path / "tree", count_links=True)
    entries = {record.path: record.entry for record in store.records()}
    assert entries[b"ping"].xattrs == ((b"security.capability", CAPABILITY),)
    assert entries[b"ping"].nlink == entries[b"fifo"].nlink == entries[b"loop"].nlink == 2
    assert entries[b"disk"].rdev == os.makedev(4095, 1048575)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_attributes_of_the_host_are_left_out(tmp_path: Path, store: Store) -> None:
    xattrs = {b"user.kept": b"1", b"trusted.kept": b"2", b"trusted.overlay.opaque": b"y", b"security.selinux": b"label"}
    make_tree(tmp_path / "tree", {b"d": Directory(), b"f": File()})
    for key, value in xattrs.items():
        try:
            os.setxattr(tmp_path / "tree/d", key, value)
        except OSError:
            assert key == b"security.selinux"
    store.publish(tmp_path / "tree")
    entries = {record.path: record.entry for record in store.records()}
    assert entries[b"d"].xattrs == ((b"trusted.kept", b"2"), (b"user.kept", b"1"))


def test_names_of_one_file_outside_the_tree_do_not_count(tmp_path: Path, store: Store) -> None:
    make_tree(
        tmp_path,
        {b"tree/a": File(data=b"x"), b"outside": Link(b"tree/a"), b"tree/b": File(), b"tree/c": Link(b"tree/b")},
    )
    store.publish(tmp_path / "tree")
    entries = {record.path: record.entry for record in store.records()}
    assert (entries[b"a"].nlink, entries[b"a"].link_group) == (1, 0)
    assert entries[b"b"].nlink == entries[b"c"].nlink == 2
    assert entries[b"b"].link_group == entries[b"c"].link_group != 0


def test_paths_as_long_as_linux_has_them(tmp_path: Path, store: Store) -> None:
    """Longer than any single system call could name from the root of the file system."""
    path = b"/".join([b"d" * 254] * 15 + [b"e" * 200] + [b"f" * 69])
    assert len(path) == 4095
    make_tree(tmp_path / "tree", {path: File(data=b"deep", xattrs={b"user.deep": b"1"})})
    store.publish(tmp_path / "tree")
    assert store.snapshot()[path].data == b"deep"
    assert store.snapshot() == snapshot(tmp_path / "tree", count_links=True)


def test_a_directory_of_many_names_and_many_runs(tmp_path: Path, store: Store) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(3000):
        (tree / f"{number:05}").write_bytes(b"%d" % (number % 700))
    report = store.publish(tree)
    assert report.counts.packs == 1
    assert store.snapshot() == snapshot(tree, count_links=True)
    again = store.publish(tree)
    assert (again.is_published, again.counts.files_read) == (False, 0)
    os.unlink(tree / "00000")
    (tree / "1500x").write_bytes(b"new")
    (tree / "02999").unlink()
    shorter = store.publish(tree)
    assert (shorter.changes.new, shorter.changes.removed, shorter.counts.files_read) == (1, 2, 1)
    assert store.snapshot() == snapshot(tree, count_links=True)


def test_the_same_tree_gives_the_same_objects(tmp_path: Path) -> None:
    """However many threads there are, and whatever their timing."""
    tree = tmp_path / "tree"
    make_tree(tree, {b"%d/%d" % (i % 7, i): File(data=os.urandom(i * 37)) for i in range(600)})
    (tree / "large").write_bytes(os.urandom(9 << 20) + bytes(5 << 20) + os.urandom(1 << 20))
    stores = [Store(tmp_path / f"store{number}") for number in range(4)]
    for number, store in enumerate(stores):
        store.publish(tree, workers=number * number + 1)
    first = stores[0]
    for store in stores[1:]:
        assert store.manifest == first.manifest
        assert store.blobs() == first.blobs()


def test_equal_files_are_stored_once(tmp_path: Path, store: Store) -> None:
    data = os.urandom(300_000)
    make_tree(tmp_path / "tree", {b"a": File(data=data), b"b": File(data=data), b"c/d": File(data=data)})
    report = store.publish(tmp_path / "tree")
    assert report.counts.dedup_bytes == 600_000
    assert report.counts.packed_bytes == 300_000
    locations = {record.content for record in store.records() if record.entry.is_regular}
    assert len(locations) == 1


def test_every_byte_read_is_packed_known_or_a_hole(tmp_path: Path, store: Store) -> None:
    make_tree(tmp_path / "tree", {b"a": File(data=b"abc" * 999), b"b": File(data=b"abc" * 999), b"e": File()})
    (tmp_path / "tree/large").write_bytes(bytes(6 << 20) + b"x" * (1 << 20) + b"x" * (1 << 20))
    counts = store.publish(tmp_path / "tree").counts
    assert counts.read_bytes == counts.packed_bytes + counts.dedup_bytes + counts.hole_bytes
    assert counts.hole_bytes == 6 << 20
    blobs = sum(map(len, store.blobs().values()))
    first_revision_bytes = sum(map(len, Store(tmp_path / "empty").blobs().values()))
    assert counts.stored_bytes + first_revision_bytes == blobs - _manifest_blob_bytes(store)


def _manifest_blob_bytes(store: Store) -> int:
    return store.head.blob.stored_size
