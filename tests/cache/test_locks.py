import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvfs.cache.directory import CacheDirectory
from cvfs.cache.locks import BlobLocks
from cvfs.format.blob import digest
from tests.cache.disks import needs_root, remount, small_disk
from tests.publisher.stores import environment

BLOB, OTHER = digest(b"a"), digest(b"b")

_HOLDER = """
import sys
from pathlib import Path
from cvfs.cache.directory import CacheDirectory
from cvfs.cache.locks import BlobLocks
lock = BlobLocks(CacheDirectory(Path(sys.argv[1]))).try_lock(bytes.fromhex(sys.argv[2]))
print(lock is not None, flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def holder(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock of BLOB until it is told to end, or killed."""
    line = [sys.executable, "-c", _HOLDER, str(path), BLOB.hex()]
    with subprocess.Popen(line, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "True\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def directory(tmp_path: Path) -> CacheDirectory:
    return CacheDirectory(tmp_path / "cache")


def test_one_holder_in_one_object(directory: CacheDirectory) -> None:
    locks = BlobLocks(directory)
    lock = locks.try_lock(BLOB)
    assert lock is not None
    assert locks.try_lock(BLOB) is None
    assert locks.try_lock(OTHER) is not None
    lock.release()
    again = locks.try_lock(BLOB)
    assert again is not None
    lock.release()  # once more is nothing: it is another's now
    assert locks.try_lock(BLOB) is None


def test_two_objects_in_one_process_exclude_each_other(directory: CacheDirectory) -> None:
    ours, theirs = BlobLocks(directory), BlobLocks(directory)
    lock = ours.try_lock(BLOB)
    assert lock is not None
    assert theirs.try_lock(BLOB) is None
    BlobLocks(directory).close()  # a POSIX lock would be lost here
    assert theirs.try_lock(BLOB) is None
    lock.release()
    assert theirs.try_lock(BLOB) is not None


def test_processes_exclude_each_other_until_death(directory: CacheDirectory) -> None:
    locks = BlobLocks(directory)
    with holder(directory.path) as process:
        assert locks.try_lock(BLOB) is None
        assert locks.try_lock(OTHER) is not None
        process.kill()
        process.wait()
        assert locks.try_lock(BLOB) is not None


@needs_root
def test_without_a_file_every_process_may_fetch(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        directory = CacheDirectory(disk)
        remount(disk, "ro")
        locks = BlobLocks(directory)
        lock = locks.try_lock(BLOB)
        assert lock is not None
        assert locks.try_lock(BLOB) is None
        lock.release()
        locks.close()
