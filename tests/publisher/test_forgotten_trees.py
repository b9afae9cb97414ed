"""What is remembered of trees that are published no more."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from publisher.publishing.options import SILENT, Options
from publisher.publishing.publish import publish
from publisher.publishing.report import Report
from publisher.state.index import open_index
from publisher.state.stat_cache import wait_until_settled
from publisher.store import open_store
from tests.publisher.stores import NOW_S, Store

DAY_S = 86400


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def trees(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "trees" / name for name in "abc"]
    for tree in made:
        for directory in (tree, tree / "d", tree / "d/e"):
            directory.mkdir(parents=True)
            (directory / "file").write_text(f"{directory}")
    return made


def _publish(store: Store, tree: Path, now_s: int) -> Report:
    options = Options(at=os.fsencode(tree.name))
    with (opened := open_store(str(store.path))).lock(None):
        return publish(opened, str(tree), store.state, options, now_s, SILENT, store.keys)


def _rows(store: Store) -> tuple[int, int]:
    """How many trees are remembered, and how many runs of names."""
    with open_index(store.state, lambda _: True, None) as index:
        return index._tables.count(b"trees"), index._tables.count(b"files")


def test_a_tree_that_is_gone_is_forgotten_after_a_day(store: Store, trees: list[Path]) -> None:
    for tree in trees:
        _publish(store, tree, NOW_S)
    assert _rows(store) == (3, 9)
    shutil.rmtree(trees[1])
    assert _publish(store, trees[0], NOW_S + DAY_S).counts.files_read == 0
    assert _rows(store) == (3, 9), "it may only be unmounted"
    assert _publish(store, trees[0], NOW_S + DAY_S + 1).counts.files_read == 0
    assert _rows(store) == (2, 6)
    assert _publish(store, trees[2], NOW_S + 2 * DAY_S).counts.files_read == 0


def test_a_tree_that_is_there_is_forgotten_after_half_a_year(store: Store, trees: list[Path]) -> None:
    for day, tree in enumerate(trees):
        _publish(store, tree, NOW_S + day * DAY_S)
    assert _publish(store, trees[1], NOW_S + 180 * DAY_S).counts.files_read == 0
    assert _rows(store) == (3, 9)
    assert _publish(store, trees[1], NOW_S + 181 * DAY_S).counts.files_read == 0
    assert _rows(store) == (2, 6)
    assert _publish(store, trees[0], NOW_S + 181 * DAY_S).counts.files_read == 3
    assert _rows(store) == (3, 9)


def test_a_tree_that_cannot_be_looked_at_is_not_gone(
    store: Store, trees: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stat(path: bytes) -> os.stat_result:
        raise OSError(errno.ESTALE, "Stale file handle", path)

    _publish(store, trees[0], NOW_S)
    with monkeypatch.context() as patch:
        patch.setattr("publisher.state.tree_expiry._look", stat)
        _publish(store, trees[1], NOW_S + 2 * DAY_S)
    assert _rows(store) == (2, 6)


def test_a_dry_run_forgets_nothing(store: Store, trees: list[Path]) -> None:
    for tree in trees[:2]:
        _publish(store, tree, NOW_S)
    shutil.rmtree(trees[0])
    opened = open_store(str(store.path))
    publish(opened, str(trees[1]), store.state, Options(at=b"b", is_dry_run=True), NOW_S + 2 * DAY_S)
    assert _rows(store) == (2, 6)


def test_an_unchanged_tree_writes_nothing(store: Store, trees: list[Path]) -> None:
    for path in [trees[0], *trees[0].rglob("*")]:
        wait_until_settled(path.stat())
    _publish(store, trees[0], NOW_S)
    before = (store.state / "index/data.mdb").read_bytes()
    _publish(store, trees[0], NOW_S + DAY_S - 1)
    assert (store.state / "index/data.mdb").read_bytes() == before
