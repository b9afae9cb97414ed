"""When what is published reaches the disk: packs on their way early, all of it before the head."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from publisher.store import directory
from tests.publisher.stores import Store
from tests.trees import File, make_tree, snapshot

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Of three packs: two large ones, and one too small to be worth an early start."""
    large = {b"large-%d" % number: File(data=random.Random(number).randbytes(4 * MIB)) for number in range(2)}
    make_tree(tmp_path / "tree", {**large, b"small": File(data=b"small")})
    return tmp_path / "tree"


def test_packs_are_begun_before_all_is_waited_for(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(descriptor: int) -> None:
        events.append("begin")
        assert os.fstat(descriptor).st_size >= 4 * MIB
        original_begin(descriptor)

    def sync(path: str) -> None:
        events.append("sync")
        original_sync(path)

    def rename(source: str, target: str) -> None:
        events.append("head" if target.endswith("timestamp.json") else "blob")
        original_rename(source, target)

    events: list[str] = []
    original_begin, original_sync, original_rename = directory._begin_write_back, directory._sync_file_system, os.rename
    monkeypatch.setattr(directory, "_begin_write_back", begin)
    monkeypatch.setattr(directory, "_sync_file_system", sync)
    monkeypatch.setattr(directory.DirectoryStore._write, "__kwdefaults__", {"durable": False, "move": rename})
    store.publish(tree)
    assert events.count("begin") == 2
    assert events[-2:] == ["sync", "head"]


@pytest.mark.parametrize("answer", [None, lambda *_: -1], ids=["lacking", "refused"])
def test_where_it_cannot_be_begun(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., int] | None
) -> None:
    monkeypatch.setattr(directory, "_libc", SimpleNamespace(sync_file_range=answer, syncfs=directory._libc.syncfs))
    assert store.publish(tree).is_published
    assert store.snapshot() == snapshot(tree, count_links=True)
