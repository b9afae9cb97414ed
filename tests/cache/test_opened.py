"""Which objects users have open: what is made of the inode numbers that the system tells."""

import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from cvfs.cache import Cache
from cvfs.cache import opened as module
from cvfs.cache.index import Place
from cvfs.cache.opened import OpenFile, OpenFiles
from cvfs.format.blob import digest
from cvfs.model import BlobRef
from tests.command import wait_until

LIMIT = 5000
PAGE = BlobRef(digest(b"page"), 10, 10)


class Host:
    """Inode number n is record n of one page: a file of n bytes, with the id n. Nobody else has anything open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open: list[int] = []
        self.has_page = True
        self.looked: list[list[int]] = []
        monkeypatch.setattr(os, "listdir", lambda path: ["1", "2"] if path == "/proc" else pytest.fail(path))
        monkeypatch.setattr(module, "_inodes_of", lambda pid: iter(self.open if pid == "1" else []))
        self.files = OpenFiles(self._find, self._open_at)

    def _find(self, inode: int) -> Place | None:
        return Place(1, PAGE, inode) if inode < 1000 else None

    def _open_at(self, page: BlobRef, positions: Collection[int]) -> dict[int, OpenFile]:
        assert page == PAGE
        self.looked.append(sorted(positions))
        return {each: OpenFile(each, {b"%d" % each}) for each in positions} if self.has_page else {}


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


def test_those_who_ask_while_another_looks_share_the_look_after_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is under way may have passed the process that has opened something since."""
    begun, goes_on, looks = threading.Event(), threading.Event(), []

    def look(pid: str) -> Iterator[int]:
        if pid == "1":
            looks.append(None)
        seen = list(host.open)
        if len(looks) == 1:
            begun.set()
            goes_on.wait(10)
        return iter(seen)

    monkeypatch.setattr(module, "_STUCK_S", 10.0)
    monkeypatch.setattr(module, "_inodes_of", look)
    first = threading.Thread(target=host.files.ids, args=[LIMIT])
    first.start()
    assert begun.wait(10)
    host.open.append(5)
    told: list[set[bytes]] = []
    asking = threading.Barrier(5)

    def ask() -> None:
        asking.wait(10)
        told.append(host.files.ids(LIMIT))

    others = [threading.Thread(target=ask) for _ in range(4)]
    for other in others:
        other.start()
    asking.wait(10)
    assert not told
    goes_on.set()
    for thread in (first, *others):
        thread.join(10)
    assert told == [{b"5"}] * 4
    assert len(looks) <= 3, "a second one, or a third for who was late"


class Stuck:
    """What process 1 has open cannot be read for some time."""

    def __init__(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        self.goes_on, self.asked = threading.Event(), 0
        self.others: list[int] = []
        monkeypatch.setattr(module, "_STUCK_S", 0.05)
        monkeypatch.setattr(module, "_inodes_of", self._look)

    def _look(self, pid: str) -> Iterator[int]:
        if pid == "1":
            self.asked += 1
            self.goes_on.wait(10)
            return iter([7])
        return iter(self.others)


def test_a_process_that_cannot_be_read_of_is_left_out(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was known before stays, for it may still have it open; and all others are looked at."""
    host.open = [5]
    assert host.files.ids(LIMIT) == {b"5"}
    stuck = Stuck(host, monkeypatch)
    stuck.others = [9]
    assert host.files.ids(LIMIT) == {b"5", b"9"}
    stuck.others = [11]
    assert host.files.ids(LIMIT) == {b"5", b"9", b"11"}
    assert stuck.asked == 1
    assert "process 1 " in caplog.text
    stuck.goes_on.set()
    wait_until(lambda: not host.files._stuck)
    assert host.files.ids(LIMIT) == {b"7", b"11"}


def test_a_disk_that_does_not_answer_holds_nobody_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.open = [5]
    assert host.files.ids(LIMIT) == {b"5"}
    goes_on, finds = threading.Event(), []

    def find(inode: int) -> Place | None:
        finds.append(inode)
        goes_on.wait(10)
        return None

    monkeypatch.setattr(module, "_STUCK_S", 0.05)
    host.files._find = find
    for _ in range(3):
        assert host.files.ids(LIMIT) == {b"5"}
    assert finds == [5]
    goes_on.set()


def test_many_processes_are_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all of them together take longer than one may."""
    monkeypatch.setattr(module, "_STUCK_S", 0.2)
    monkeypatch.setattr(os, "listdir", lambda path: [str(pid) for pid in range(1, 8)])

    def look(pid: str) -> Iterator[int]:
        threading.Event().wait(0.05)
        return iter([int(pid)])

    monkeypatch.setattr(module, "_inodes_of", look)
    assert host.files.ids(LIMIT) == {b"%d" % pid for pid in range(1, 8)}


def test_own_descriptors_and_maps_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SMALLEST", 0)
    (tmp_path / "file").write_bytes(b"data")
    with (tmp_path / "file").open("rb") as file:
        assert os.fstat(file.fileno()).st_ino in set(module._inodes_of(str(os.getpid())))


def test_the_same_content_counts_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.open = [3, 4, 5]
    there = {3: OpenFile(10, {b"same"}), 4: OpenFile(10, {b"same"}), 5: OpenFile(15, {b"other"})}
    host.files._open_at = lambda page, positions: {each: there[each] for each in positions}
    assert host.files.ids(25) == {b"same", b"other"}
    assert host.files.ids(24) == {b"same"}


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
