"""A store that is rolled back beneath its publisher: signed as it should be, and yet not what was published."""

import shutil
from pathlib import Path

import pytest

from cvfs.errors import TrustError
from publisher.state.last_published import LastPublished
from publisher.store import open_store
from tests.publisher.stores import Store, error_line, run


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


@pytest.fixture
def store(tmp_path: Path, tree: Path) -> Store:
    """Two revisions were published, and the first was put back; the backup is in `backup`, the second in `mirror`."""
    store = Store(tmp_path / "store")
    _publish(store, tree, "one")
    shutil.copytree(store.path, tmp_path / "backup")
    _publish(store, tree, "two")
    shutil.copytree(store.path, tmp_path / "mirror")
    _put_back(store, tmp_path / "backup")
    assert store.manifest.revision == 1
    return store


def _publish(store: Store, tree: Path, text: str, **options: object) -> None:
    (tree / "file").write_text(text)
    assert store.publish(tree, **options).is_published


def _put_back(store: Store, copy: Path) -> None:
    shutil.rmtree(store.path)
    shutil.copytree(copy, store.path)


def test_is_noticed_and_nothing_published(store: Store, tree: Path) -> None:
    (tree / "file").write_text("three")
    with pytest.raises(TrustError, match=r"rolled back: .* another revision 2 of it, and its newest is 1\. .*mirror"):
        store.publish(tree)
    with pytest.raises(TrustError, match="rolled back"):
        store.publish(tree, is_dry_run=True)
    assert store.manifest.revision == 1


def test_is_noticed_though_others_have_published_since(store: Store, tree: Path, tmp_path: Path) -> None:
    here, store.state = store.state, tmp_path / "state of another host"
    for text in ("other two", "other three"):
        _publish(store, tree, text)
    store.state = here
    with pytest.raises(TrustError, match="another revision 2 of it, and its newest is 3"):
        store.publish(tree)


def test_is_over_when_the_store_is_put_back(store: Store, tree: Path, tmp_path: Path) -> None:
    _put_back(store, tmp_path / "mirror")
    _publish(store, tree, "three")
    assert store.manifest.revision == 3


def test_goes_on_above_what_clients_have_seen(store: Store, tree: Path, tmp_path: Path) -> None:
    seen = Store.__new__(Store)
    seen.path, seen.keys = tmp_path / "mirror", store.keys
    (tree / "file").write_text("one")
    assert store.publish(tree, accepts_rollback=True).is_published, "signed anew, though nothing has changed"
    assert store.manifest.revision == 2
    for before, after in zip(_versions(seen), _versions(store), strict=True):
        assert after > before + 1000, "others may have signed again since, a timer the timestamp for one"
    _publish(store, tree, "three")
    assert store.manifest.revision == 3


def _versions(store: Store) -> tuple[int, int, int]:
    mark = store.head.mark
    snapshots = [int(path.name.partition(".")[0]) for path in (store.path / "metadata").glob("*.snapshot.json")]
    return mark.targets, max(snapshots), mark.timestamp


def test_other_hosts_revisions_are_no_rollback(store: Store, tree: Path, tmp_path: Path) -> None:
    _put_back(store, tmp_path / "mirror")
    here, store.state = store.state, tmp_path / "state of another host"
    _publish(store, tree, "three")
    store.state = here
    _publish(store, tree, "four")
    assert store.manifest.revision == 4


def test_another_store_is_another_story(store: Store, tree: Path, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    other.state = store.state
    _publish(other, tree, "first")
    assert other.manifest.revision == 1


def test_torn_memory_is_no_memory(store: Store, tree: Path) -> None:
    (store.state / "published.json").write_bytes(b'{"ab')
    _publish(store, tree, "three")
    assert LastPublished(store.state, open_store(str(store.path))).check(store.head) == store.head


def test_command_line_says_it_in_one_line(store: Store, tree: Path) -> None:
    again = ("publish", store.path, tree, "--state", store.state)
    assert "--accept-rollback" in error_line(run(*again))
    done = run(*again, "--accept-rollback")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Published revision 2")
