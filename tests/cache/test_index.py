"""Inode numbers: the same in every process, whatever becomes of the files that say where they lead."""

import errno
import fcntl
import mmap
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

from cvfs.cache import index_files, index_part, index_places, inode_table
from cvfs.cache.directory import CacheDirectory
from cvfs.cache.index import InodeIndex, Place
from cvfs.cache.inode_table import Full, InodeTable, Slot
from cvfs.errors import CacheError, FormatError
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


def test_publisher_cannot_make_numbers_meet_without_end(
    directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each such entry would be a walk past all others. And whose number they took is not harmed."""
    index = InodeIndex(directory)
    ref, honest = leaf(1)
    victim = NUMBERING.entries(b"d", honest.groups[0].entries)[0]
    evil = Numbering("evil.example.org")
    forged = [Identity(victim.number, check) for check in range(1000)]
    monkeypatch.setattr(evil, "entries", lambda *_: forged, raising=False)
    with pytest.raises(FormatError, match="were made"):
        index.adopt(evil, *leaf(2))
    [numbers] = index.adopt(NUMBERING, ref, honest)
    assert len(set(numbers)) == 10
    check(index, 1, numbers)


def test_numbers_that_are_alike_are_not_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher can choose the low bits of its numbers, or the high ones."""
    count = 0

    class Counting:
        size, pack_into, iter_unpack = (getattr(inode_table._SLOT, n) for n in ("size", "pack_into", "iter_unpack"))

        @staticmethod
        def unpack_from(buffer: mmap.mmap, offset: int) -> tuple[int, ...]:
            nonlocal count
            count += 1
            return slot.unpack_from(buffer, offset)

    slot = inode_table._SLOT
    monkeypatch.setattr(inode_table, "_SLOT", Counting)
    alike = [[(number << 32) + 7 for number in range(4000)], [(7 << 40) + number for number in range(4000)]]
    for numbers in alike:
        table = inode_table.in_memory(1 << 14)
        table.put_all(0, [(number, 0) for number in numbers])
        larger = inode_table.in_memory(1 << 15, table)
        larger.take_over(table)
        assert all(larger.find(number) for number in numbers)
    assert count < 20 * 3 * 8000


def test_table_of_an_older_version_is_gone_on_with(directory: CacheDirectory) -> None:
    """It has no secret: a number's slot is at its low bits. When it grows it is given one."""
    InodeIndex(directory).close()
    path = files(directory) / "table.1"
    with path.open("r+b") as file:
        file.write(b"cvfs-ino")
        file.seek(40)
        file.write(bytes(8))
    old = InodeIndex(directory)
    numbers = adopt(old, 1)
    for number in numbers:
        with path.open("rb") as file:
            file.seek(4096 + (number & (1 << 16) - 1) * 16)
            assert int.from_bytes(file.read(8), "little") == number
    for serial in range(2, 50):
        adopt(old, serial, 1000)
    check(InodeIndex(directory), 1, numbers)
    assert next(files(directory).glob("table.*")).read_bytes()[:8] == b"cvfs-in2"


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
def test_full_disk_keeps_the_index_in_memory_for_all(
    tmp_path: Path, size: str, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        directory = CacheDirectory(disk)
        index = InodeIndex(directory)
        other = InodeIndex(directory)
        numbers = {serial: adopt(index, serial, 100) for serial in range(3)}
        fill(disk)
        numbers |= {serial: adopt(index, serial, 1000) for serial in range(3, 60)}
        check(other, 1000, adopt(other, 1000, 1000))
        late = InodeIndex(directory)  # as a process does that takes the place of one that was killed
        for serial, found in numbers.items():
            for each in (index, other, late):
                check(each, serial, found)
        warnings = [record for record in caplog.records if "kept in memory" in record.message]
        assert len(warnings) <= 3, "once for each"
        for each in (index, other, late):
            each.close()


@needs_root
def test_full_disk_is_answered_with_eviction_first(tmp_path: Path, host_memory: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        directory, fillers = CacheDirectory(disk), list[Path]()
        asked = list[int]()

        def evict(size: int) -> None:
            asked.append(size)
            fillers.pop().unlink()

        index = InodeIndex(directory, evict)
        fillers.append(fill(disk))
        numbers = adopt(index, 1)
        check(index, 1, numbers)
        assert len(asked) == 1
        assert not list(host_memory.iterdir())
        index.close()


@needs_root
def test_disk_is_tried_again(tmp_path: Path, host_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_places, "_REST_S", 0.0)
    with small_disk(tmp_path / "disk", "4m") as disk:
        directory = CacheDirectory(disk)
        index = InodeIndex(directory)
        filler = fill(disk)
        first = adopt(index, 1)
        filler.unlink()
        second = adopt(index, 2)
        shutil.rmtree(next(host_memory.iterdir()))
        for number in range(2):
            check(index, number + 1, (first, second)[number])
        other = InodeIndex(directory)
        assert other.find(first[0]) is None
        check(other, 2, second)
        index.close()
        other.close()


def test_without_locks_the_index_is_shared_in_memory(
    directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch, host_memory: Path
) -> None:
    """On the disk two processes could give one number to two leaves."""
    ask = fcntl.flock

    def refuse(fd: int, kind: int) -> None:
        if "/index/" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        ask(fd, kind)

    monkeypatch.setattr(fcntl, "flock", refuse)
    ours, theirs = InodeIndex(directory), InodeIndex(directory)
    numbers = adopt(ours, 1)
    check(theirs, 1, numbers)
    check(InodeIndex(directory), 1, numbers)
    assert not list(files(directory).glob("table.*"))
    assert list(host_memory.glob("*/*/table.1"))


@needs_root
@pytest.mark.parametrize("mode", ["another's", "open"])
def test_memory_that_another_user_may_write_to_is_not_used(
    directory: CacheDirectory, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither made, nor gone on with: whoever cuts a file that is mapped ends the process."""
    with monkeypatch.context() as full:
        full.setattr(index_places.index_files, "disk_root", lambda cache: cache / "none")
        full.setattr(index_places.index_files, "open_on_disk", out_of_space)
        numbers = adopt(InodeIndex(directory), 1)
        root = index_files.memory_root(directory.path)
        check(InodeIndex(directory), 1, numbers)
        if mode == "open":
            root.chmod(0o777)
        else:
            os.chown(root, 12345, 12345)
        index = InodeIndex(directory)
        assert index.find(numbers[0]) is None
        check(index, 1, adopt(index, 1))


def out_of_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_numbers_are_told_apart_wherever_they_are_kept(
    directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_places, "_REST_S", 0.0)
    ours, theirs = InodeIndex(directory), InodeIndex(directory)
    first = adopt(ours, 1)
    forged = NUMBERING.entries(b"d", leaf(1)[1].groups[0].entries)
    evil = Numbering("evil.example.org")
    monkeypatch.setattr(evil, "entries", lambda *_: forged, raising=False)
    with monkeypatch.context() as full:
        for index in (ours, theirs):
            full.setattr(index._places._held[0], "locked", out_of_space)
        [second] = ours.adopt(evil, *leaf(2))
        third = adopt(ours, 3)
    assert not set(first) & set(second)
    forged[:] = NUMBERING.entries(b"d", leaf(3)[1].groups[0].entries)
    [fourth] = theirs.adopt(evil, *leaf(4))  # on the disk; the third is in memory
    assert not set(third) & set(fourth)
    for index in (ours, theirs, InodeIndex(directory)):
        check(index, 1, first)
        check(index, 3, third)
        for number in (*second, *fourth):
            assert index.find(number).repository == evil.seed  # type: ignore[union-attr]


def test_leaf_whose_process_was_killed_is_taken_in_by_the_next(
    directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is listed whose numbers lead nowhere."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for where in ("cvfs.cache.leaves.LeafList.add", "cvfs.cache.index_part.Part.put_all"):
        first = InodeIndex(directory)
        with monkeypatch.context() as context:
            context.setattr(where, killed)
            with pytest.raises(KeyboardInterrupt):
                adopt(first, 1)
        first.close()
    index = InodeIndex(directory)
    check(index, 2, adopt(index, 2))
    check(index, 1, adopt(index, 1))
    check(InodeIndex(directory), 1, adopt(InodeIndex(directory), 1))


def test_table_that_cannot_grow_lists_no_leaf(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_files, "FIRST_CAPACITY", 64)
    ours, theirs = InodeIndex(directory), InodeIndex(directory)
    with monkeypatch.context() as full:
        full.setattr(index_files.IndexFiles, "new_table", out_of_space)
        numbers = adopt(ours, 1, 200)
    check(ours, 1, numbers)
    assert adopt(theirs, 1, 200) == numbers
    check(theirs, 1, numbers)


def test_disk_that_fails_is_a_cache_error(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = InodeIndex(directory), InodeIndex(directory)
    numbers = adopt(ours, 1)

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(CacheError):
        theirs.pages()
    with pytest.raises(CacheError):
        theirs.find(numbers[0])
    check(theirs, 2, adopt(theirs, 2))


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
    assert {number: Slot(number, page - 1, *rest) for number, page, *rest in table._taken()} == model
    assert table.count == len(model)
    larger = inode_table.in_memory(256)
    larger.take_over(table)
    for each in (table, larger):
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
    assert index_part._GROWTH.bit_count() == 1


def test_trim_loses_nothing(directory: CacheDirectory) -> None:
    private, slot = inode_table.in_memory(64), Slot(5, 1, 2, 3)
    with (directory.path / "table").open("w+b") as file:
        shared = inode_table.in_file(file.fileno(), 64)
    for table in (private, shared):
        table.put(*slot)
        table.trim()
        assert table.find(5) == slot
