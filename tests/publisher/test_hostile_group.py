"""What a member of a store's group, who can write in its directory, puts there leads root nowhere else."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cvfs.errors import StoreError
from cvfs.model import BlobRef, Digest
from cvfs.trust.names import TIMESTAMP
from publisher.store import directory, open_store
from tests.publisher.stores import Store, error_line, run
from tests.trees import File, make_tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    path = tmp_path / "store"
    path.mkdir()
    path.chmod(0o2775)
    return Store(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make_tree(tmp_path / "tree", {b"a": File(data=b"a"), b"d/b": File(data=b"b" * 5000)})
    return tmp_path / "tree"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory that is the publisher's alone, with a file in it; it has to stay as it is."""
    path = tmp_path / "outside"
    path.mkdir(0o700)
    make_tree(path, {b"1-2-3": File(data=b"private", mode=0o600)})
    before = _facts(path)
    yield path
    assert _facts(path) == before


def _facts(path: Path) -> list[tuple[str, int, int, int]]:
    found = ((each, each.lstat()) for each in (path, *sorted(path.rglob("*"))))
    return [(str(each), status.st_mode, status.st_size, status.st_mtime_ns) for each, status in found]


@pytest.mark.parametrize("make", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("to_write", [True, False])
def test_a_lock_that_is_a_link(store: Store, outside: Path, make: Callable[[Path, Path], None], to_write: bool) -> None:
    lock = store.path / ".publisher/lock"
    lock.unlink(missing_ok=True)
    make(lock, outside / "1-2-3")
    if make is Path.hardlink_to:
        with open_store(str(store.path)).lock(None, to_write=to_write):
            return
    with (
        pytest.raises(StoreError, match=r"cannot lock the store .*: It is a symbolic link \(.*/\.publisher/lock\)"),
        open_store(str(store.path)).lock(None, to_write=to_write),
    ):
        pass


@pytest.mark.parametrize("name", [".publisher/lock", TIMESTAMP])
def test_a_fifo_is_not_waited_for(store: Store, tree: Path, name: str) -> None:
    (store.path / name).unlink(missing_ok=True)
    os.mkfifo(store.path / name)
    line = error_line(run("publish", store.path, tree, "--state", store.state))
    assert line.endswith(f"Not a regular file ({store.path / name})")


@pytest.mark.parametrize("name", [".publisher", ".publisher/incoming", "data", "metadata"])
def test_a_directory_that_is_a_link(store: Store, tree: Path, name: str) -> None:
    """It leads to where all is that was there; nothing of that is changed, nothing added or removed."""
    store.publish(tree)
    make_tree(tree, {b"more": File(data=b"more")})
    place, elsewhere = store.path / name, store.path.with_name("elsewhere")
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    (elsewhere / "1-2-3").write_bytes(b"private")
    before = _facts(elsewhere)
    error_line(run("publish", store.path, tree, "--state", store.state))
    assert _facts(elsewhere) == before
    place.unlink()
    elsewhere.rename(place)
    assert store.publish(tree).is_published


def test_a_directory_of_blobs_that_is_a_link(store: Store) -> None:
    blob = next(store.path / name for name in store.blobs())
    elsewhere = store.path.with_name("elsewhere")
    blob.parent.rename(elsewhere)
    blob.parent.symlink_to(elsewhere)
    blob_id = Digest(bytes.fromhex(blob.parent.name + blob.name))
    opened = open_store(str(store.path))
    assert blob_id not in {each.id for each in opened.list_blobs()}
    with pytest.raises(StoreError, match="Not a directory"):
        opened.remove_blob(blob_id)
    with pytest.raises(StoreError, match="Not a directory"):
        opened.get_blob(BlobRef(blob_id, 1, 1))
    assert (elsewhere / blob.name).exists()


def test_a_directory_that_becomes_a_link_when_it_is_made(
    store: Store, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        original(path, mode, dir_fd=dir_fd)
        place = Path("" if dir_fd is None else f"/proc/self/fd/{dir_fd}") / path
        place.rmdir()
        place.symlink_to(outside)

    original = os.mkdir
    opened = open_store(str(store.path))
    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(OSError, match="Not a directory"):
        opened.make_directory("data/new")


def test_a_temporary_file_that_becomes_a_link_before_it_is_moved(
    store: Store, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_all(descriptor: int, data: bytes) -> None:
        original(descriptor, data)
        [temporary] = (store.path / ".publisher/incoming").iterdir()
        temporary.unlink()
        temporary.symlink_to(outside / "1-2-3")

    original = directory.write_all
    monkeypatch.setattr(directory, "write_all", write_all)
    opened = open_store(str(store.path))
    assert opened.add_metadata("metadata/9.targets.json", b"new")
    assert (outside / "1-2-3").stat().st_nlink == 1
    with pytest.raises(StoreError, match="symbolic link"):
        opened.get_metadata("metadata/9.targets.json", 100)


def test_only_what_a_publisher_leaves_is_cleaned_up(store: Store, outside: Path) -> None:
    incoming = store.path / ".publisher/incoming"
    (incoming / "12-345-6").write_bytes(b"half")
    (incoming / "notes").write_bytes(b"another's")
    (incoming / "1-2-4").mkdir()
    (incoming / "1-2-5").symlink_to(outside / "1-2-3")
    with open_store(str(store.path)).lock(None):
        assert sorted(each.name for each in incoming.iterdir()) == ["1-2-4", "1-2-5", "notes"]
