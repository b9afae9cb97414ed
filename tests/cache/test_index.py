"""Inode numbers: the same in every process, whatever becomes of the files that say where they lead."""

import os
import random
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvfs.cache import index as index_module
from cvfs.cache import index_files, inode_table
from cvfs.cache.directory import CacheDirectory
from cvfs.cache.index import InodeIndex, Place
from cvfs.cache.inode_table import Full, InodeTable, Slot
from cvfs.format.blob import digest
from cvfs.format.pages import Leaf, decode_page, encode_leaf
from cvfs.inodes import Identity, Numbering
from cvfs.model import NO_CONTENT, BlobRef, Entry, Record
from tests.cache.disks import fill, needs_root, remount, small_disk
from tests.publisher.stores import environment

NUMBERING = Numbering("a.example.org")


def leaf(serial: int, count: int = 10, directory: bytes = b"d") -> tuple[BlobRef, Leaf]:
    name = b"%06d-%06d"
    mode, content_id = stat.S_IFREG | 0o644, digest(b"")
    entries = [Entry(name % (serial, i), mode, 0, 0, 0, 0, 1, 0, 0, content_id, b"", ()) for i in range(count)]
    data = encode_leaf([Record(directory, entry, NO_CONTENT) for entry in entries])
    page = decode_page(data)
    assert isinstance(page, Leaf)
    return BlobRef(digest(data), len(data), len(data)), page


def adopt(index: InodeIndex, serial: int, count: int = 10) -> list[int]:
    [numbers] = index.adopt(NUMBERING, *leaf(serial, count))
    return list(numbers)


def check(index: InodeIndex, serial: int, numbers: Sequence[int]) -> None:
    ref, _ = leaf(serial, len(numbers))
    for position, number in enumerate(numbers):
        assert index.find(number) == Place(NUMBERING.seed, ref, position)


@pytest.fixture
def directory(tmp_path: Path) -> CacheDirectory:
    return CacheDirectory(tmp_path / "cache")


def files(directory: CacheDirectory) -> Path:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return directory.path / "index" / boot


def test_adopted_is_found_by_all_who_share_the_directory(directory: CacheDirectory) -> None:
    ours, theirs = InodeIndex(directory), InodeIndex(directory)
    numbers = adopt(ours, 1)
    check(ours, 1, numbers)
    check(theirs, 1, numbers)
    check(InodeIndex(directory), 1, numbers)
    assert adopt(theirs, 1) == numbers
    assert ours.find(12345) is None


def test_numbers_are_the_same_in_every_process(directory: CacheDirectory) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.cache.test_index import *\n"
        "print(adopt(InodeIndex(CacheDirectory(Path(sys.argv[1]))), 7))"
    )
    lines = [
        subprocess.run([sys.executable, "-c", code, path], env=environment(), capture_output=True, check=True).stdout
        for path in (directory.path, directory.path.with_name("other"))
    ]
    assert lines[0] == lines[1] == f"{adopt(InodeIndex(directory), 7)}\n".encode()


def test_growth_is_followed_by_readers_and_writers(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_files, "FIRST_CAPACITY", 64)
    ours, theirs = InodeIndex(directory), InodeIndex(directory)
    first = adopt(theirs, 0)
    numbers = {serial: adopt(ours, serial, 50) for serial in range(1, 20)}
    for serial, found in numbers.items():
        check(theirs, serial, found)
    check(theirs, 0, first)
    check(ours, 100, adopt(theirs, 100))
    assert len(list(files(directory).glob("table.*"))) == 1


def test_two_processes_adopt_at_once(directory: CacheDirectory) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.cache.test_index import *\n"
        "index = InodeIndex(CacheDirectory(Path(sys.argv[1]))); sys.stdin.readline()\n"
        "for serial in range(int(sys.argv[2]), 400, 2): check(index, serial, adopt(index, serial, 300))\n"
        "for serial in range(0, 400, 7): check(index, serial, adopt(index, serial, 300))"
    )
    lines = [[sys.executable, "-c", code, str(directory.path), start] for start in ("0", "1")]
    workers = [subprocess.Popen(line, env=environment(), stdin=subprocess.PIPE) for line in lines]
    for worker in workers:
        worker.communicate(b"go\n", timeout=60) if worker is workers[-1] else worker.stdin.write(b"go\n")  # type: ignore[union-attr]
    for worker in workers:
        worker.stdin.close()  # type: ignore[union-attr]
        assert worker.wait(60) == 0
    index = InodeIndex(directory)
    for serial in range(400):
        check(index, serial, adopt(index, serial, 300))


def test_reading_while_another_thread_adopts(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_files, "FIRST_CAPACITY", 64)
    index, other = InodeIndex(directory), InodeIndex(directory)
    numbers = adopt(index, 0)
    done = threading.Event()

    def write() -> None:
        for serial in range(1, 150):
            adopt(other if serial % 3 else index, serial, 40)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        check(index, 0, numbers)
        check(other, 0, numbers)
    thread.join()
    for serial in range(1, 150):
        check(index, serial, adopt(other, serial, 40))


# Collisions


def collide(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on there are only eight numbers: all entries contest them."""
    whole = Numbering.entries

    def few(self: Numbering, directory: bytes, entries: Sequence[Entry]) -> list[Identity]:
        return [Identity(number % 8 + 100, check) for number, check in whole(self, directory, entries)]

    monkeypatch.setattr(Numbering, "entries", few)


def test_contested_numbers_are_told_apart(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    collide(monkeypatch)
    ours, theirs = InodeIndex(directory), InodeIndex(directory)
    numbers = {serial: adopt(ours, serial) for serial in range(6)}
    assert len({number for found in numbers.values() for number in found}) == 60
    for serial, found in numbers.items():
        check(ours, serial, found)
        check(theirs, serial, found)
        assert adopt(theirs, serial) == found
        assert adopt(InodeIndex(directory), serial) == found
        assert adopt(ours, serial) == found


def test_no_repository_takes_the_number_of_another(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one whose entries were made to have the very hashes of another's."""
    ours, theirs = InodeIndex(directory), InodeIndex(directory)
    numbers = adopt(ours, 1)
    forged = NUMBERING.entries(b"d", leaf(1)[1].groups[0].entries)
    evil = Numbering("evil.example.org")
    monkeypatch.setattr(evil, "entries", lambda *_: forged, raising=False)
    for index in (ours, theirs, InodeIndex(directory)):
        [others] = index.adopt(evil, *leaf(2))
        assert not set(others) & set(numbers)
        check(index, 1, numbers)
        assert {index.find(number).repository for number in others} == {evil.seed}  # type: ignore[union-attr]
        assert list(others) == [index.resolve(evil.seed, identity) for identity in forged]
        assert adopt(index, 1) == numbers


def test_last_number_is_followed_by_the_first_that_is_free_for_use() -> None:
    table = inode_table.in_memory(64)
    last = (1 << 64) - 1
    assert table.put(last, 0, 0, 1)
    assert not table.put(last, 0, 1, 2)


# Damage


def corrupt_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"nonsense")


def cut(path: Path) -> None:
    os.truncate(path, 5000)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def impossible_capacity(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8)
        file.write(b"\0" * 8)


def become_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGES = [corrupt_header, cut, empty, impossible_capacity, become_a_directory, become_a_dangling_link]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["table.1", "pages"])
def test_damaged_files_are_no_obstacle(directory: CacheDirectory, name: str, damage: object) -> None:
    first = InodeIndex(directory)
    numbers = adopt(first, 1)
    first.close()
    damage(files(directory) / name)  # type: ignore[operator]
    index = InodeIndex(directory)
    if (name, damage) != ("pages", corrupt_header):  # that makes the numbers another repository's
        assert adopt(index, 1) == numbers
    check(index, 1, adopt(index, 1))
    check(index, 2, adopt(index, 2))
    if name == "table.1" and damage in (corrupt_header, cut, empty, impossible_capacity):
        check(InodeIndex(directory), 1, numbers)  # moved aside, and begun anew for all
        assert list(files(directory).parent.glob("*.broken-*"))


def test_random_garbage_in_the_slots_is_never_believed_and_never_hangs(directory: CacheDirectory) -> None:
    first = InodeIndex(directory)
    numbers = adopt(first, 1)
    first.close()
    with (files(directory) / "table.1").open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(4096)
        file.write(random.Random(1).randbytes(size - 4096))
    index = InodeIndex(directory)
    for number in [*numbers, 77]:
        place = index.find(number)
        assert place is None or place.page == leaf(1)[0]
    fresh = adopt(index, 2)
    check(index, 2, fresh)


def test_garbage_beside_the_files_is_left_out(directory: CacheDirectory) -> None:
    InodeIndex(directory).close()
    for name in ("table.x", "table.", "table.-1", "table.²", "other"):
        (files(directory) / name).write_bytes(b"garbage")
    index = InodeIndex(directory)
    check(index, 1, adopt(index, 1))
    assert (files(directory) / "table.1").exists()


def test_wipe_under_a_live_index(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_files, "FIRST_CAPACITY", 64)
    index = InodeIndex(directory)
    numbers = {0: adopt(index, 0)}
    shutil.rmtree(directory.path / "index")
    numbers |= {serial: adopt(index, serial, 50) for serial in range(1, 20)}
    for serial, found in numbers.items():
        check(index, serial, found)


def test_new_boot_begins_anew(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = InodeIndex(directory)
    numbers = adopt(first, 1)
    files(directory).rename(files(directory).with_name("another-boot"))
    index = InodeIndex(directory)
    assert index.find(numbers[0]) is None
    assert [path.name for path in (directory.path / "index").iterdir()] == [files(directory).name]
    check(first, 1, numbers)


# Disks


@needs_root
@pytest.mark.parametrize("size", ["64k", "1100k", "4m"])
def test_full_disk_keeps_the_index_in_memory(tmp_path: Path, size: str, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        directory = CacheDirectory(disk)
        index = InodeIndex(directory)
        other = InodeIndex(directory)
        numbers = {serial: adopt(index, serial, 100) for serial in range(3)}
        fill(disk)
        numbers |= {serial: adopt(index, serial, 1000) for serial in range(3, 60)}
        for serial, found in numbers.items():
            check(index, serial, found)
        check(other, 1000, adopt(other, 1000, 1000))
        assert sum("kept in memory" in record.message for record in caplog.records) in (2, 3)
        index.close()
        other.close()


def test_who_left_the_disk_does_not_write_to_what_others_share(directory: CacheDirectory) -> None:
    """The others would take its leaves for their own of the same numbers."""
    ours, theirs = InodeIndex(directory), InodeIndex(directory)
    first = adopt(ours, 0)
    ours._leave_disk(OSError("no space"))
    numbers = adopt(ours, 1)
    other = adopt(theirs, 2)
    assert {theirs.find(number) for number in numbers} == {None}
    check(ours, 0, first)
    check(ours, 1, numbers)
    check(theirs, 0, first)
    check(theirs, 2, other)


@needs_root
def test_read_only_disk_keeps_the_index_in_memory(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        directory = CacheDirectory(disk)
        remount(disk, "ro")
        index = InodeIndex(directory)
        check(index, 1, adopt(index, 1))


# The table itself, against a dictionary


@given(st.data())
def test_table_is_a_mapping(data: st.DataObject) -> None:
    table, model = inode_table.in_memory(64), {}
    number = st.one_of(
        st.integers(2, 20), st.integers(2, (1 << 64) - 1), st.sampled_from([64, 128, 192, (1 << 64) - 1])
    )
    for _ in range(data.draw(st.integers(0, 60))):
        slot = Slot(data.draw(number), *data.draw(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 2))))
        known = model.get(slot.number)
        if known is None and len(model) == 40:
            with pytest.raises(Full):
                table.put(*slot)
            break
        done = table.put(*slot)
        assert done == (known is None or known.check == slot.check)
        if done:
            model[slot.number] = slot
    assert {slot.number: slot for slot in table.slots()} == model
    assert table.count == len(model)
    larger = inode_table.in_memory(256)
    larger.take_over(table)
    for each in (table, larger, table.copy()):
        for asked in [*model, 3, 65]:
            assert each.find(asked) == model.get(asked)


@given(st.binary(max_size=6000))
def test_whatever_a_file_says_it_is_a_table_or_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("table") / "t"
    path.write_bytes(data)
    with path.open("r+b") as file, pytest.raises(ValueError):  # noqa: PT011
        inode_table.open_file(file.fileno())


def test_table_full_of_foreign_slots_ends_a_search() -> None:
    table: InodeTable = inode_table.in_memory(64)
    for place in range(64):
        inode_table._SLOT.pack_into(table._map, 4096 + place * 16, 1000 + place, 1, 0, 0)
    assert table.find(5) is None
    with pytest.raises(Full):
        table.put(5, 0, 0, 0)


def test_growth_constant_keeps_a_power_of_two() -> None:
    assert index_module._GROWTH.bit_count() == 1


def test_trim_loses_nothing(directory: CacheDirectory) -> None:
    private, slot = inode_table.in_memory(64), Slot(5, 1, 2, 3)
    with (directory.path / "table").open("w+b") as file:
        shared = inode_table.in_file(file.fileno(), 64)
    for table in (private, shared, private.copy()):
        table.put(*slot)
        table.trim()
        assert table.find(5) == slot
