"""Publishing into a part of a repository: what is around it stays, and stays right."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvfs.errors import PublishError
from publisher.maintenance.remove import remove
from publisher.repository.subtree import parse_path
from publisher.store import open_store
from tests.publisher.stores import NOW_S, Store
from tests.trees import Directory, Facts, File, Link, Tree, make_tree, snapshot, trees


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@settings(max_examples=40)
@given(data=st.data(), whole=trees(14), part=trees(8))
def test_a_part_is_as_if_the_whole_had_been_published(data: st.DataObject, whole: Tree, part: Tree) -> None:
    """Any directory, file or new name of any tree, replaced by any other tree, and by yet another."""
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        make_tree(top / "whole", whole)
        store = Store(top / "store")
        store.publish(top / "whole")
        parents = sorted(path for path, node in whole.items() if isinstance(node, Directory))
        new = os.path.join(data.draw(st.sampled_from(parents)), b"new")
        at = data.draw(st.sampled_from([new, *(path for path in sorted(whole) if path)]))
        make_tree(top / "part", part)
        store.publish(top / "part", at=at)
        again = store.publish(top / "part", at=at)
        assert (again.is_published, again.counts.files_read) == (False, 0)
        target = top / "whole" / Path(os.fsdecode(at))
        _replace(target, top / "part")
        wanted = snapshot(top / "whole", count_links=True)
        assert _without_time(store.snapshot(), at) == _without_time(wanted, at)
        alone = Store(top / "alone")
        alone.publish(top / "whole")
        assert [r.entry.link_group for r in store.records()] == [r.entry.link_group for r in alone.records()]


@settings(max_examples=40)
@given(data=st.data(), whole=trees(14))
def test_what_is_removed_is_as_if_it_had_never_been_published(data: st.DataObject, whole: Tree) -> None:
    paths = [path for path in sorted(whole) if path]
    if not paths:
        return
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        make_tree(top / "whole", whole)
        store = Store(top / "store")
        store.publish(top / "whole")
        gone = data.draw(st.sampled_from(paths))
        _remove(store, gone)
        target = top / "whole" / Path(os.fsdecode(gone))
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink()
        wanted = snapshot(top / "whole", count_links=True)
        assert _without_time(store.snapshot(), gone) == _without_time(wanted, gone)
        alone = Store(top / "alone")
        alone.publish(top / "whole")
        assert [r.entry.link_group for r in store.records()] == [r.entry.link_group for r in alone.records()]
        store.publish(top / "whole")
        assert store.snapshot() == wanted


def _remove(store: Store, *paths: bytes) -> None:
    opened = open_store(str(store.path))
    with opened.lock(None):
        remove(opened, store.keys, store.state, paths, "", NOW_S, NOW_S, pytest.fail)


def test_what_is_not_there_cannot_be_removed(tmp_path: Path, store: Store) -> None:
    make_tree(tmp_path / "tree", {b"a/1": File(data=b"x"), b"a/2": File(data=b"x"), b"b": File(data=b"x")})
    store.publish(tmp_path / "tree")
    for paths, told in (([b"a/1", b"a/3"], "'a/3': no such path"), ([b""], "everything"), ([b"a", b"a/1"], "'a/1'")):
        with pytest.raises(PublishError, match=told):
            _remove(store, *paths)
    assert store.manifest.revision == 1
    _remove(store, b"a/1", b"b")
    assert sorted(store.snapshot()) == [b"", b"a", b"a/2"]
    assert store.manifest.revision == 2


def _replace(target: Path, part: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(part, target)
    os.symlink(target, part)


def _without_time(facts: dict[bytes, Facts], at: bytes) -> dict[bytes, Facts]:
    """Without the time of the directory that got or lost a subdirectory."""
    parent = at.rpartition(b"/")[0]
    return {**facts, parent: facts[parent]._replace(mtime_ns=0)}


def test_missing_parents_are_made_like_the_tree(tmp_path: Path, store: Store) -> None:
    owner = (5, 6) if os.geteuid() == 0 else None
    make_tree(tmp_path / "tree", {b"": Directory(mode=0o700, owner=owner, mtime_ns=77), b"f": File(data=b"x")})
    store.publish(tmp_path / "tree", at=b"a/b/c")
    facts = store.snapshot()
    assert sorted(facts) == [b"", b"a", b"a/b", b"a/b/c", b"a/b/c/f"]
    source = snapshot(tmp_path / "tree", count_links=True)
    assert facts[b"a/b/c"] == source[b""]
    made = source[b""]._replace(mode=0o40755, nlink=3)
    assert facts[b"a"] == facts[b"a/b"] == made
    assert (facts[b""].nlink, facts[b""].mtime_ns) == (3, NOW_S * 10**9)


def test_a_file_above_is_in_the_way(tmp_path: Path, store: Store) -> None:
    make_tree(tmp_path / "tree", {b"f": File(data=b"x")})
    store.publish(tmp_path / "tree")
    with pytest.raises(PublishError, match="not a directory in the repository: 'f'"):
        store.publish(tmp_path / "tree", at=b"f/below")
    assert store.manifest.revision == 1


def test_hard_links_torn_apart(tmp_path: Path, store: Store) -> None:
    make_tree(tmp_path / "tree", {b"a/1": File(data=b"x"), b"b/2": Link(b"a/1"), b"c/3": Link(b"a/1")})
    make_tree(tmp_path / "part", {b"1": File(data=b"new"), b"y": Link(b"1")})
    store.publish(tmp_path / "tree")
    store.publish(tmp_path / "part", at=b"a")
    facts = store.snapshot()
    assert facts[b"a/1"].names == (b"a/1", b"a/y")
    assert facts[b"b/2"].names == (b"b/2", b"c/3")
    assert facts[b"b/2"].nlink == 2
    make_tree(tmp_path / "empty", {})
    store.publish(tmp_path / "empty", at=b"b")
    assert store.snapshot()[b"c/3"].nlink == 1
    assert store.snapshot()[b"c/3"].names == ()


def test_what_is_around_is_neither_read_nor_written(tmp_path: Path, store: Store) -> None:
    tree = {b"%03d/%03d" % (i // 100, i): File(data=b"%d" % i) for i in range(6000)}
    make_tree(tmp_path / "tree", tree)
    store.publish(tmp_path / "tree")
    make_tree(tmp_path / "part", {b"f": File(data=b"x")})
    report = store.publish(tmp_path / "part", at=b"030/050")
    assert store.manifest.level > 0
    assert report.counts.files == 1
    assert report.counts.pages <= 4


@pytest.mark.parametrize(
    ("text", "path"), [("", b""), ("/", b""), ("a", b"a"), ("/a//b/", b"a/b"), ("\udcff/x y", b"\xff/x y")]
)
def test_paths_as_users_write_them(text: str, path: bytes) -> None:
    assert parse_path(text) == path


@pytest.mark.parametrize("text", ["..", "a/../b", ".", "a/./b", "a\0b", "x" * 256, "/".join(["x" * 200] * 21)])
def test_paths_that_cannot_be(text: str) -> None:
    with pytest.raises(PublishError):
        parse_path(text)
