"""When what is published reaches the disk: packs on their way early, all of it before the head."""

import ctypes
import errno
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cvfs.errors import StoreError
from publisher.store import directory, disk
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

    def sync(descriptor: int) -> None:
        events.append("sync")
        original_sync(descriptor)

    def rename(source: Any, target: Any, **directories: Any) -> None:
        if directories:  # It is the store that moves it.
            events.append("head" if target == "timestamp.json" else "blob")
        original_rename(source, target, **directories)

    events: list[str] = []
    original_begin, original_sync, original_rename = directory.begin_write_back, directory.sync_file_system, os.rename
    monkeypatch.setattr(directory, "begin_write_back", begin)
    monkeypatch.setattr(directory, "sync_file_system", sync)
    monkeypatch.setattr(os, "rename", rename)
    store.publish(tree)
    assert events.count("begin") == 2
    assert events[-2:] == ["sync", "head"]


@pytest.mark.parametrize("answer", [None, lambda *_: -1], ids=["lacking", "refused"])
def test_where_it_cannot_be_begun(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., int] | None
) -> None:
    monkeypatch.setattr(disk, "_libc", SimpleNamespace(sync_file_range=answer, syncfs=disk._libc.syncfs))
    assert store.publish(tree).is_published
    assert store.snapshot() == snapshot(tree, count_links=True)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def test_what_the_disk_refused_early_is_an_error(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells it once to each descriptor that was open then, and to none that was opened later."""

    def begin(*_: object) -> int:
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # that of the listing itself
                told.add((int(name), _path_of(int(name))))
        return 0

    def syncfs(descriptor: int) -> int:
        assert os.fstat(descriptor).st_dev == os.stat(store.path / "data").st_dev
        ctypes.set_errno(errno.EIO)
        return -1 if (descriptor, _path_of(descriptor)) in told else 0

    told: set[tuple[int, str]] = set()
    before = store.head
    with monkeypatch.context() as patch:
        patch.setattr(disk, "_libc", SimpleNamespace(sync_file_range=begin, syncfs=syncfs))
        with pytest.raises(StoreError, match=r"cannot write the store .*: Input/output error"):
            store.publish(tree)
    assert told
    assert store.head == before
    assert store.publish(tree).is_published
