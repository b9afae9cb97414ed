import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvfs.cache import Cache
from cvfs.cache.directory import CacheDirectory
from cvfs.errors import ConfigError
from tests.cache.disks import needs_root, remount, small_disk
from tests.command import wait_until
from tests.publisher.stores import environment


def test_is_made_private_and_marked(tmp_path: Path) -> None:
    directory = CacheDirectory(tmp_path / "a/b/cache")
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert directory.writable
    assert os.listdir(directory.path) == ["CVFS-CACHE"]
    CacheDirectory(directory.path)


def test_newer_layout_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "CVFS-CACHE").write_text("2\n")
    with pytest.raises(ConfigError, match="layout"):
        Cache(tmp_path)
    assert os.listdir(tmp_path) == ["CVFS-CACHE"]


@pytest.mark.parametrize("marker", [b"", b"\0\0", b"garbage\xff"])
def test_torn_marker_is_written_anew_and_nothing_lost(tmp_path: Path, marker: bytes) -> None:
    (tmp_path / "objects").mkdir()
    (tmp_path / "CVFS-CACHE").write_bytes(marker)
    CacheDirectory(tmp_path)
    assert (tmp_path / "CVFS-CACHE").read_text() == "1\n"
    assert sorted(os.listdir(tmp_path)) == ["CVFS-CACHE", "objects"]


def test_older_layout_is_moved_aside_and_removed_in_the_background(tmp_path: Path) -> None:
    (tmp_path / "objects/ab").mkdir(parents=True)
    (tmp_path / "pins").mkdir()
    (tmp_path / "CVFS-CACHE").write_text("0\n")
    CacheDirectory(tmp_path)
    assert (tmp_path / "CVFS-CACHE").read_text() == "1\n"
    assert not (tmp_path / "objects").exists()
    wait_until(lambda: sorted(os.listdir(tmp_path)) == ["CVFS-CACHE", "pins"])


def test_directory_of_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not a cache"):
        Cache(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    for path in (tmp_path / "cache", tmp_path / "cache/below"):
        with pytest.raises(ConfigError):
            Cache(path)


@pytest.mark.parametrize("call", ["mkdir", "stat"])
def test_directory_that_cannot_be_looked_at_is_refused(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below a directory that may not be searched."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, call, refuse)
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(ConfigError, match="Permission denied"):
        CacheDirectory(tmp_path / "cache")


@needs_root
def test_other_users_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    os.chown(tmp_path / "cache", 12345, 12345)
    with pytest.raises(ConfigError, match="uid 12345"):
        Cache(tmp_path / "cache")


def test_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(ConfigError, match="others may write"):
        Cache(tmp_path / "cache")


def test_what_a_wipe_left_is_a_cache_again_with_the_first_file(tmp_path: Path) -> None:
    directory = CacheDirectory(tmp_path / "cache")
    (directory.path / "CVFS-CACHE").unlink()
    directory.make(os.fsencode(directory.path / "objects/ab"))
    CacheDirectory(directory.path)


def test_process_that_comes_second_to_a_new_cache_does_not_mind(tmp_path: Path) -> None:
    """It found no marker; now there is one, and more."""
    directory = CacheDirectory(tmp_path / "cache")
    directory.make(os.fsencode(directory.path / "objects"))
    directory._mark(directory.path / "CVFS-CACHE")
    assert (directory.path / "CVFS-CACHE").read_text() == "1\n"


@needs_root
def test_read_only_disk_still_opens(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        Cache(disk).close()
        remount(disk, "ro")
        cache = Cache(disk)
        assert not cache.directory.writable
        cache.close()


def test_processes_may_open_a_new_cache_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cvfs.cache import Cache; sys.stdin.readline()\n"
        "for i in range(40): Cache(Path(sys.argv[1]) / str(i)).close()"
    )
    line = [sys.executable, "-c", code, str(tmp_path)]
    workers = [
        subprocess.Popen(line, env=environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdin
        worker.stdin.write(b"\n")
        worker.stdin.flush()
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert (worker.returncode, errors) == (0, b"")
