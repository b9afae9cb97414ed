"""Chunks of large files: read at once where the kernel has them in memory, and only then."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cvfs.cache import large as module
from cvfs.cache.directory import CacheDirectory
from cvfs.cache.large import LargeFiles
from cvfs.format.blob import digest
from cvfs.model import BlobRef, Location

SIZE = 1 << 20
DATA = random.Random(1).randbytes(SIZE)
RECIPE = digest(b"recipe")


def chunk(number: int) -> Location:
    """Where `DATA` is the chunk of that number."""
    return Location(number * SIZE, SIZE, BlobRef(digest(DATA), SIZE, SIZE), 0, digest(DATA))


@pytest.fixture
def files() -> Iterator[LargeFiles]:
    """On a disk: tmpfs, where other tests write, does not say what is in memory."""
    with TemporaryDirectory(dir="/var/tmp") as directory:
        yield LargeFiles(CacheDirectory(Path(directory, "cache")))


def forget(files: LargeFiles) -> None:
    """Have the kernel drop what it has of the file in memory."""
    fd = os.open(files.path(RECIPE), os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def test_what_the_kernel_has_in_memory_is_read_at_once(files: LargeFiles) -> None:
    assert files.load_nowait(RECIPE, chunk(1)) is None
    files.store(RECIPE, 3 * SIZE, chunk(1), DATA)
    data = files.load_nowait(RECIPE, chunk(1))
    if not files._tells_what_is_in_memory:
        pytest.skip("the file system of /var/tmp cannot say what is in memory")
    assert data == DATA
    forget(files)
    assert files.load_nowait(RECIPE, chunk(1)) is None
    assert files.load(RECIPE, chunk(1)) == DATA
    assert files.load_nowait(RECIPE, chunk(1)) == DATA


def test_what_is_not_stored_is_not_given(files: LargeFiles) -> None:
    files.store(RECIPE, 3 * SIZE, chunk(1), DATA)
    for number in (0, 2, 3):
        assert files.load_nowait(RECIPE, chunk(number)) is None


preadv = os.preadv


def refuse(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
    """A file system that cannot read only what is in memory."""
    if flags:
        raise OSError(errno.EOPNOTSUPP, "not supported")
    return preadv(fd, buffers, offset)


def fail_if_asked(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
    if flags:
        pytest.fail("asked")
    return preadv(fd, buffers, offset)


def test_a_file_system_that_does_not_tell_is_asked_once(files: LargeFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.store(RECIPE, SIZE, chunk(0), DATA)
    monkeypatch.setattr(os, "preadv", refuse)
    assert files.load_nowait(RECIPE, chunk(0)) is None
    assert files.load(RECIPE, chunk(0)) == DATA
    monkeypatch.setattr(os, "preadv", fail_if_asked)
    assert files.load_nowait(RECIPE, chunk(0)) is None


def test_a_python_of_an_old_c_library_never_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NOWAIT", 0)
    monkeypatch.setattr(os, "preadv", fail_if_asked)
    files = LargeFiles(CacheDirectory(tmp_path / "cache"))
    files.store(RECIPE, SIZE, chunk(0), DATA)
    assert files.load_nowait(RECIPE, chunk(0)) is None
    assert files.load(RECIPE, chunk(0)) == DATA


def test_what_is_not_right_is_not_given(files: LargeFiles) -> None:
    files.store(RECIPE, 3 * SIZE, chunk(1), DATA)
    with open(files.path(RECIPE), "r+b") as file:
        file.seek(SIZE + 5)
        file.write(b"altered")
    assert files.load_nowait(RECIPE, chunk(1)) is None
    os.truncate(files.path(RECIPE), SIZE + 5)
    assert files.load_nowait(RECIPE, chunk(1)) is None
    os.unlink(files.path(RECIPE))
    os.mkdir(files.path(RECIPE))
    assert files.load_nowait(RECIPE, chunk(1)) is None
    assert os.path.isdir(files.path(RECIPE))
