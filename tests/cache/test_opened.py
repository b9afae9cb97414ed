"""Which objects users have open: what is made of the inode numbers that the system tells."""

import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from cvfs.cache import Cache
from cvfs.cache import opened as module
from cvfs.cache.index import Place
from cvfs.cache.opened import Open, OpenFiles
from cvfs.format.blob import digest
from cvfs.model import BlobRef

LIMIT = 5000
PAGE = BlobRef(digest(b"page"), 10, 10)


class Host:
    """Inode number n is record n of one page: a file of n bytes, with the id n. Nobody else has anything open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open: list[int] = []
        self.has_page = True
        self.looked: list[list[int]] = []
        monkeypatch.setattr(module, "_inodes", lambda: iter(self.open))
        self.files = OpenFiles(self._find, self._open_at)

    def _find(self, inode: int) -> Place | None:
        return Place(1, PAGE, inode) if inode < 1000 else None

    def _open_at(self, page: BlobRef, positions: Collection[int]) -> dict[int, Open]:
        assert page == PAGE
        self.looked.append(sorted(positions))
        return {each: Open(each, {b"%d" % each}) for each in positions} if self.has_page else {}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_what_is_open_is_told_and_looked_up_once(host: Host) -> None:
    host.open = [5, 5, 7, 4000]
    assert host.files.ids(LIMIT) == {b"5", b"7"}
    assert host.files.ids(LIMIT) == {b"5", b"7"}
    host.open = [7, 9]
    assert host.files.ids(LIMIT) == {b"7", b"9"}
    assert host.looked == [[5, 7], [9]], "one page, decoded once for all"


def test_what_could_not_be_had_is_looked_up_again(host: Host) -> None:
    host.open, host.has_page = [5], False
    assert not host.files.ids(LIMIT)
    host.has_page = True
    assert host.files.ids(LIMIT) == {b"5"}


def test_the_largest_may_go_where_all_do_not_fit(host: Host) -> None:
    host.open = [1, 50, 60]
    assert host.files.ids(111) == {b"1", b"50", b"60"}
    assert host.files.ids(110) == {b"1", b"50"}
    assert host.files.ids(0) == set()


def test_what_was_opened_before_it_was_asked_is_told_however_lately(host: Host) -> None:
    for inode in range(1, 50):
        host.open.append(inode)
        assert b"%d" % inode in host.files.ids(LIMIT)


def test_who_asks_while_another_looks_waits_for_a_look_of_his_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is under way may have passed the process that has opened something since."""
    begun, goes_on, looks = threading.Event(), threading.Event(), []

    def look() -> Iterator[int]:
        looks.append(None)
        seen = list(host.open)
        if len(looks) == 1:
            begun.set()
            goes_on.wait(10)
        return iter(seen)

    monkeypatch.setattr(module, "_WAIT_S", 10.0)
    monkeypatch.setattr(module, "_inodes", look)
    first = threading.Thread(target=host.files.ids, args=[LIMIT])
    first.start()
    assert begun.wait(10)
    host.open.append(5)
    told: list[set[bytes]] = []
    others = [threading.Thread(target=lambda: told.append(host.files.ids(LIMIT))) for _ in range(4)]
    for other in others:
        other.start()
    goes_on.set()
    for thread in (first, *others):
        thread.join(10)
    assert told == [{b"5"}] * 4
    assert len(looks) <= 1 + len(others)


def test_a_process_that_cannot_be_read_of_holds_nobody_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.open = [5]
    assert host.files.ids(LIMIT) == {b"5"}
    goes_on = threading.Event()

    def hanging() -> Iterator[int]:
        goes_on.wait()
        return iter([7])

    monkeypatch.setattr(module, "_WAIT_S", 0.05)
    monkeypatch.setattr(module, "_inodes", hanging)
    assert host.files.ids(LIMIT) == {b"5"}, "the last one"
    assert host.files.ids(LIMIT) == {b"5"}, "without another attempt"
    goes_on.set()
    with host.files._scanning:
        assert host.files._known.keys() == {Place(1, PAGE, 7)}


def test_own_descriptors_and_maps_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALLEST", 0)
    (tmp_path / "file").write_bytes(b"data")
    with (tmp_path / "file").open("rb") as file:
        assert os.fstat(file.fileno()).st_ino in set(module._inodes())


def test_pages_of_what_is_open_stay_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that say where the chunks of a large file are: no inode number leads to them."""
    cache = Cache(tmp_path)
    page = b"where the chunks are"
    cache.store_blob(digest(page), page)
    monkeypatch.setattr(cache._open_files, "ids", lambda limit: {digest(page)})
    assert cache.quota.evict_to(0) == 0
    assert cache.blobs.stored_bytes(digest(page))
    monkeypatch.undo()
    assert cache.quota.evict_to(0)
    cache.close()
