"""Revisions compared, gone back to, and let go."""

import json
import os
import random
from pathlib import Path

import pytest

from cvfs.errors import ConfigError, StoreError, TrustError
from cvfs.format.blob import blob_path
from cvfs.format.tree import Tree
from cvfs.model import BlobRef, Digest, Manifest
from publisher.maintenance.garbage_collection import Collected, Policy, collect
from publisher.maintenance.rollback import rollback
from publisher.repository.difference import differences
from publisher.repository.history import find_revision, read_manifest, revisions
from publisher.repository.reachability import ReachableBlobs
from publisher.repository.tags import set_tag
from publisher.store import DirectoryStore, open_store
from tests.publisher.stores import NOW_S, Store, error_line, run
from tests.trees import snapshot

DAY_S = 86_400
NOW = 4_000_000_000
"""Later than any file of a test was stored."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


@pytest.fixture
def store(tmp_path: Path, tree: Path) -> Store:
    """Revisions 1 to 4: each has a file of its own content, `same` is in all, and 4 has many names."""
    store = Store(tmp_path / "store")
    (tree / "same").write_bytes(_noise(0))
    for number in range(1, 5):
        (tree / "file").write_bytes(_noise(number))
        store.publish(tree)
    return store


def _noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(20_000)


def _revision(store: Store, number: int) -> Manifest:
    opened, head = open_store(str(store.path)), store.head
    return read_manifest(opened, find_revision(opened, head.manifest, head.blob, number).manifest)


def _collect(store: Store, newest: int, grace_s: int = 0, now_s: int = NOW, *, is_dry_run: bool = False) -> Collected:
    opened, policy = open_store(str(store.path)), Policy(newest, grace_s)
    return collect(opened, store.keys, store.state, policy, now_s, is_dry_run=is_dry_run)


def _rollback(store: Store, number: int) -> int | None:
    made = rollback(open_store(str(store.path)), store.keys, store.state, number, "", NOW_S, pytest.fail)
    return None if made is None else made.revision


def _blobs_of(store: Store, manifest: Manifest) -> set[BlobRef]:
    reachable = ReachableBlobs(open_store(str(store.path)))
    reachable.add(manifest)
    return reachable.blobs


def _is_complete(store: Store, number: int) -> bool:
    try:
        blobs = _blobs_of(store, _revision(store, number))
    except StoreError:
        return False
    return all(map(open_store(str(store.path)).has_blob, blobs))


def test_diff_tells_what_kind_of_difference(store: Store, tree: Path) -> None:
    (tree / "file").unlink()
    (tree / "new\nline").write_text("new")
    (tree / "link").symlink_to("same")
    os.utime(tree / "same", (1, 1))
    store.publish(tree)
    os.utime(tree, (2, 2))
    (tree / "link").unlink()
    (tree / "link").symlink_to("file")
    store.publish(tree)
    done = run("diff", store.path, "4")
    assert sorted(done.stdout.splitlines()) == ["A /link", "A /new\\nline", "D /file", "T /", "T /same"], done.stderr
    assert set(run("diff", store.path, "5", "6").stdout.splitlines()) == {"M /link", "T /"}
    said = json.loads(run("diff", store.path, "6", "5", "--json").stdout)
    assert (said["older"], said["newer"]) == (6, 5)
    assert {"path": "link", "kind": "changed"} in said["differences"]
    assert run("diff", store.path, "6", "6").stdout == ""


def test_diff_reads_only_pages_that_differ(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3000):
        (tree / f"{number:04}").touch()
    store.publish(tree)
    (tree / "0001").write_text("changed")
    store.publish(tree)
    older, newer, read = _revision(store, 5), _revision(store, 6), list[BlobRef]()

    def get_blob(ref: BlobRef) -> bytes:
        read.append(ref)
        return original(ref)

    opened = open_store(str(store.path))
    original = opened.get_blob
    monkeypatch.setattr(opened, "get_blob", get_blob)
    assert [each.path for each in differences(opened, older, newer)] == [b"0001"]
    assert sum(1 for _ in store.tree().pages()) >= 4
    assert len(read) == 4, "two roots, two leaves"


def test_rollback_is_a_new_revision_with_the_old_content(store: Store, tree: Path) -> None:
    wanted = _revision(store, 2)
    assert _rollback(store, 2) == 5
    assert store.manifest.root == wanted.root
    assert store.manifest.summary == wanted.summary
    assert store.manifest.message == "Back to revision 2"
    assert store.content(next(each for each in store.records() if each.path == b"file")) == _noise(2)
    assert _rollback(store, 2) is None, "it is so already"
    assert not store.publish(tree).counts.files_read, "what came after it is known still"
    assert store.manifest.revision == 6
    assert store.snapshot() == snapshot(tree, count_links=True)


def test_rollback_needs_all_of_the_revision(store: Store) -> None:
    _collect(store, 1)
    with pytest.raises(StoreError, match="revision 2 is gone: gc has removed it"):
        _rollback(store, 2)
    with pytest.raises(StoreError, match="has no revision 9"):
        _rollback(store, 9)
    assert store.manifest.revision == 4


def test_rollback_misses_a_pack_too(store: Store) -> None:
    old = _revision(store, 2)
    [pack] = _blobs_of(store, old) - _blobs_of(store, store.manifest) - {old.root}
    (store.path / blob_path(pack.id)).unlink()
    with pytest.raises(StoreError, match="revision 2 is not complete any more: 1 of its blobs"):
        _rollback(store, 2)


def test_gc_removes_what_no_kept_revision_needs_and_nothing_else(store: Store, tree: Path) -> None:
    (store.path / "metadata/2.targets.json").unlink()  # nothing needs it: it may be missing in a copy
    before = set(store.blobs())
    done = _collect(store, 2)
    assert done.kept == [4, 3]
    assert done.removed_blobs == len(before) - len(store.blobs()) == 4, "three pages, and the pack of revision 2"
    assert [_is_complete(store, number) for number in range(5)] == [False, False, False, True, True]
    assert store.snapshot() == snapshot(tree, count_links=True)
    history = revisions(open_store(str(store.path)), store.manifest)
    assert [one.revision for one in history] == [4, 3, 2, 1, 0], "manifests stay"
    again = _collect(store, 2)
    assert (again.removed_blobs, again.kept_blobs) == (0, done.kept_blobs)
    assert sum(map(len, store.blobs().values())) == done.kept_bytes


def test_gc_in_a_dry_run_only_tells(store: Store) -> None:
    before = store.blobs()
    told = _collect(store, 1, is_dry_run=True)
    assert store.blobs() == before
    done = _collect(store, 1)
    assert (told.removed_blobs, told.removed_bytes) == (done.removed_blobs, done.removed_bytes)


def test_gc_keeps_tags_and_what_was_new_a_moment_ago(store: Store) -> None:
    set_tag(open_store(str(store.path)), store.keys, "v1", 1, NOW_S)
    set_tag(open_store(str(store.path)), store.keys, "v1", 2, NOW_S, move=True)
    assert _collect(store, 1, is_dry_run=True).kept == [4, 2]
    _age(store, NOW_S)
    assert _collect(store, 1, grace_s=DAY_S, now_s=NOW_S + DAY_S - 1, is_dry_run=True).kept == [4, 3, 2, 1, 0]
    assert _collect(store, 1, grace_s=DAY_S, now_s=NOW_S + DAY_S, is_dry_run=True).kept == [4, 2]
    _collect(store, 1)
    assert _is_complete(store, 2)
    assert run("diff", store.path, "v1").returncode == 0, "tags can be read still"


def test_gc_asks_no_date_that_was_set_when_a_revision_was_replaced(store: Store, tree: Path) -> None:
    _age(store, NOW - DAY_S)
    (tree / "file").write_bytes(_noise(5))
    store.publish(tree, published_s=NOW_S)
    os.utime(store.path / blob_path(store.head.blob.id), (NOW - 10, NOW - 10))
    assert _collect(store, 1, grace_s=60).kept == [5, 4]
    assert _collect(store, 1, grace_s=5).kept == [5]


def _age(store: Store, stored_s: int) -> None:
    for path in store.blobs():
        os.utime(store.path / path, (stored_s, stored_s))


def test_gc_keeps_all_of_a_revision_whose_root_page_is_young(store: Store) -> None:
    _age(store, NOW - 50)
    root = store.path / blob_path(_revision(store, 2).root.id)
    os.utime(root, (NOW - 5, NOW - 5))
    assert _collect(store, 1, grace_s=10).kept == [4, 2]
    assert _is_complete(store, 2)


@pytest.mark.parametrize("first", [{"newest": 1}, {"newest": 1, "grace_s": 1}])
def test_gc_can_be_told_to_keep_more_than_before(store: Store, tree: Path, first: dict[str, int]) -> None:
    _age(store, NOW_S)
    assert _collect(store, **first).kept == [4]
    again = _collect(store, 3, grace_s=NOW)
    assert (again.kept, again.removed_blobs) == ([4], 0)
    (tree / "file").write_bytes(_noise(5))
    store.publish(tree)
    assert _collect(store, 3).kept == [5, 4]
    assert store.snapshot() == snapshot(tree, count_links=True)


@pytest.mark.parametrize("removed", [0, 2, 5])
def test_gc_that_dies_is_done_again(store: Store, monkeypatch: pytest.MonkeyPatch, removed: int) -> None:
    def remove_blob(opened: DirectoryStore, blob_id: Digest) -> None:
        if len(gone) == removed:
            raise KeyboardInterrupt
        gone.append(blob_id)
        original(opened, blob_id)

    gone, roots, original = (
        list[Digest](),
        {_revision(store, each).root.id for each in range(4)},
        DirectoryStore.remove_blob,
    )
    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "remove_blob", remove_blob)
        with pytest.raises(KeyboardInterrupt):
            _collect(store, 1)
    assert set(gone[:4]) <= roots, "root pages go first"
    kept = _collect(store, 5).kept
    assert len(kept) == 5 - min(removed, 4)
    assert all(_is_complete(store, each) for each in kept)


def test_gc_tells_which_revision_lacks_a_page(store: Store) -> None:
    set_tag(open_store(str(store.path)), store.keys, "v2", 2, NOW_S)
    (store.path / blob_path(_revision(store, 2).root.id)).unlink()
    before = store.blobs()
    with pytest.raises(StoreError, match="revision 2 is not complete any more"):
        _collect(store, 1)
    assert store.blobs() == before


def test_gc_survives_a_broken_file_of_old_targets(store: Store) -> None:
    for number, broken in enumerate((b"", b"[]", b'{"signed": 1}', b'{"signed": {"targets": []}}'), 1):
        (store.path / f"metadata/{number}.targets.json").write_bytes(broken)
    assert _collect(store, 1).kept == [4]
    assert _is_complete(store, 4)


def test_what_was_collected_gets_no_tag(store: Store) -> None:
    _collect(store, 1)
    with pytest.raises(StoreError, match="revision 2 is gone: gc has removed it"):
        set_tag(open_store(str(store.path)), store.keys, "v2", 2, NOW_S)
    set_tag(open_store(str(store.path)), store.keys, "v4", 4, NOW_S)
    assert _collect(store, 1).kept == [4]


def test_gc_leaves_young_blobs_and_what_is_none(store: Store) -> None:
    path = store.path / blob_path(Digest(bytes(32)))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"of a publisher elsewhere")
    os.utime(path, (NOW - 50, NOW - 50))
    other = path.with_name("note.txt")
    other.write_text("mine")
    assert _collect(store, 5, grace_s=100).removed_blobs == 0
    assert _collect(store, 5, grace_s=50).removed_blobs == 1
    assert not path.exists()
    assert other.exists()


def test_gc_removes_nothing_if_a_page_cannot_be_read(store: Store, tree: Path) -> None:
    for number in range(1500):
        (tree / f"{number:04}").touch()
    store.publish(tree)
    (tree / "file").write_bytes(_noise(5))
    store.publish(tree)
    pages = list(Tree(_revision(store, 5).root, 1, store.load).pages())
    assert len(pages) > 2
    (store.path / blob_path(pages[1].id)).unlink()
    before = store.blobs()
    with pytest.raises(StoreError):
        _collect(store, 2)
    assert store.blobs() == before


def test_gc_touches_no_store_that_is_not_ours_or_was_rolled_back(store: Store, tmp_path: Path) -> None:
    before = store.blobs()
    memory = store.state / "published.json"
    memory.write_text(memory.read_text().replace('"revision":4', '"revision":5'))
    with pytest.raises(TrustError, match="rolled back"):
        _collect(store, 1)
    store.keys = Store(tmp_path / "other").keys
    with pytest.raises((TrustError, ConfigError)):
        _collect(store, 1)
    assert store.blobs() == before


def test_what_gc_removed_is_published_again(store: Store, tree: Path) -> None:
    _collect(store, 1)
    (tree / "file").write_bytes(_noise(1))
    store.publish(tree)
    assert store.snapshot() == snapshot(tree, count_links=True)


def test_what_was_collected_is_said_to_be_gone(store: Store) -> None:
    opened = open_store(str(store.path))
    with opened.lock(None):
        set_tag(opened, store.keys, "v2", 2, NOW_S)
        set_tag(opened, store.keys, "a", 2, NOW_S)
    _collect(store, 1)
    lines = run("log", store.path).stdout.splitlines()
    assert [line.partition(" UTC  ")[2] for line in lines] == [
        "3 entries, 39.1 KiB",
        "3 entries, 39.1 KiB  (gone)",
        "3 entries, 39.1 KiB  (a, v2)",
        "3 entries, 39.1 KiB  (gone)",
        "1 entry, 0 bytes  (gone)",
    ]
    listed = json.loads(run("log", store.path, "--json").stdout)["revisions"]
    assert [(each["gone"], each["tags"]) for each in listed[1:3]] == [(True, []), (False, ["a", "v2"])]
    assert run("diff", store.path, "2", "4").returncode == 0
    assert error_line(run("diff", store.path, "1")).startswith("revision 1 is gone: gc has removed it")


def test_a_tag_can_be_given_to_what_another_means(store: Store) -> None:
    keys = ("--keys", store.keys.directory)
    assert run("tag", store.path, "v2", "2", *keys).returncode == 0
    assert run("tag", store.path, "stable", "v2", *keys).stdout.startswith("stable: revision 2, ")
    assert run("tag", store.path, "stable", "4", "--move", *keys).stdout.startswith("stable: revision 4, ")
    assert "has no revision or tag 'v3'" in error_line(run("tag", store.path, "stable", "v3", "--move", *keys))


@pytest.mark.parametrize("grace", ["nan", "inf", "-1"])
def test_grace_that_is_no_time(store: Store, grace: str) -> None:
    refused = run("gc", store.path, "--keep", "1", "--grace", grace)
    assert refused.returncode == 2
    assert "Invalid value for '--grace'" in refused.stderr


def test_command_lines(store: Store) -> None:
    done = run("rollback", store.path, "1", "-m", "broken", "--state", store.state)
    assert done.stdout == "Published revision 5, equal to revision 1\n", done.stderr
    assert json.loads(run("rollback", store.path, "1", "--state", store.state, "--json").stdout) == {
        "published": False,
        "revision": 5,
        "content_of": 1,
    }
    kept = run("gc", store.path, "--keep", "1", "--dry-run", "--state", store.state)
    assert "Would remove 0 blobs" in kept.stdout, "all are too young"
    gone = json.loads(run("gc", store.path, "--keep", "1", "--grace", "0", "--state", store.state, "--json").stdout)
    assert gone["kept"] == [5]
    assert gone["removed_blobs"] > 0
    assert "no revision or tag 'v9'" in error_line(run("diff", store.path, "v9"))
