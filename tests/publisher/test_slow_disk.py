"""Files that come at once are read in the one thread that decides; files that are waited for, in many."""

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from publisher.source import small_files
from publisher.source.scanned import Unread
from publisher.source.tree import SourceTree
from tests.publisher.stores import Store

_AT_ONCE_S, _ALWAYS_WAITED_S = 1e9, -1.0


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for number in range(700):
        path = tmp_path / "tree" / str(number // 100) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n" * 50)
    return tmp_path / "tree"


def _publish(store: Store, tree: Path, slow_s: float, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Publish as if a file were waited for from `slow_s` on; how many batches were read by which kind of thread."""
    read_by: Counter[str] = Counter()

    def read_batch(source: SourceTree, files: Sequence[Unread]) -> list[small_files.Plain]:
        read_by[threading.current_thread().name.partition("_")[0]] += 1
        return original(source, files)

    original = small_files.read_batch
    with monkeypatch.context() as patch:
        patch.setattr(small_files, "_SLOW_S", slow_s)
        patch.setattr(small_files, "read_batch", read_batch)
        store.publish(tree)
    return read_by


def test_both_ways_make_the_same_packs(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, slow = Store(tmp_path / "quick"), Store(tmp_path / "slow")
    assert set(_publish(quick, tree, _AT_ONCE_S, monkeypatch)) == {"MainThread"}
    read_by = _publish(slow, tree, _ALWAYS_WAITED_S, monkeypatch)
    assert read_by["MainThread"] == 1, "the batch that was waited for"
    assert read_by["read"] >= 5
    assert quick.records() == slow.records()


def test_a_disk_that_became_fast_is_noticed(tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_files, "_BATCHES_IN_THREADS", 2)
    read_by = _publish(Store(tmp_path / "store"), tree, _ALWAYS_WAITED_S, monkeypatch)
    assert read_by["MainThread"] == 2
    assert read_by["read"] == 4
