import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvfs import flock


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """One file, opened twice."""
    fds = [os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600) for _ in range(2)]
    yield fds[0], fds[1]
    for fd in fds:
        os.close(fd)


def refuse(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    monkeypatch.setattr(fcntl, "fcntl", refused)


def test_one_holder_until_it_lets_go(two: tuple[int, int]) -> None:
    ours, theirs = two
    assert flock.try_lock(ours)
    assert not flock.try_lock(theirs)
    assert not flock.try_lock(theirs, shared=True)
    flock.unlock(ours)
    assert flock.try_lock(theirs, shared=True)
    assert flock.try_lock(ours, shared=True)
    assert not flock.try_lock(ours)


def test_bytes_have_locks_of_their_own(two: tuple[int, int]) -> None:
    ours, theirs = two
    assert flock.try_byte(ours, 7)
    assert not flock.try_byte(theirs, 7)
    assert flock.try_byte(theirs, 8)
    assert flock.try_lock(theirs)
    flock.unlock_byte(ours, 7)
    assert flock.try_byte(theirs, 7)


@pytest.mark.parametrize("wait", [flock.wait_lock, lambda fd, deadline_s: flock.wait_byte(fd, 0, deadline_s)])
def test_nobody_is_waited_for_beyond_the_deadline(two: tuple[int, int], wait: Callable[[int, float], None]) -> None:
    ours, theirs = two
    wait(ours, 0.0)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        wait(theirs, 0.1)
    assert 0.1 <= time.monotonic() - start < 2


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_without_locks_nobody_holds_one(two: tuple[int, int], number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert flock.works(two[0])
    refuse(number, monkeypatch)
    for fd in two:
        assert flock.try_lock(fd)
        assert flock.try_byte(fd, 0)
        flock.wait_lock(fd, 0.0)
        flock.unlock(fd)
        flock.unlock_byte(fd, 0)
        assert not flock.works(fd)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_disk_that_fails_is_no_lock(two: tuple[int, int], number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(number, monkeypatch)
    for lock in (flock.try_lock, flock.wait_lock, flock.unlock):
        with pytest.raises(OSError, match=os.strerror(number)):
            lock(two[0])
