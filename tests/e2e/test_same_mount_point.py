"""A mount that was unmounted lazily and is still in use, and another in its place: neither knows of the other."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.host import Host, Store, kill, processes_of, wait_until
from tests.e2e.supervised import supervisor_of, workers


@pytest.fixture(scope="module")
def engine() -> str:
    """The one whose workers share files."""
    return "channel"


def test_first_mount_ends_by_itself(host: Host, tmp_path: Path) -> None:
    with _two(host, tmp_path) as (former, mount, first):
        kill(*workers(former))
        assert _read(first) == b"first"
        kill(*workers(supervisor_of(host, mount)))
        assert (mount / "what").read_bytes() == b"second"
        os.close(first)
        wait_until(lambda: former not in processes_of(host.top))
        _is_intact(host, mount)


def test_first_mount_is_told_to_end(host: Host, tmp_path: Path) -> None:
    """In vain it takes its mount away, which is used."""
    with _two(host, tmp_path) as (former, mount, first):
        os.kill(former, signal.SIGTERM)
        wait_until(lambda: former not in processes_of(host.top))
        os.close(first)
        _is_intact(host, mount)


@contextmanager
def _two(host: Host, tmp_path: Path) -> Iterator[tuple[int, Path, int]]:
    """The supervisor of the first mount, the directory of both, and a descriptor of the root of the first."""
    mount = host.mount(_store(tmp_path, "first").path)
    former = supervisor_of(host, mount)
    first = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    host.umount(mount, "--lazy")
    host.mount(_store(tmp_path, "second").path, on=mount)
    yield former, mount, first
    host.umount(mount)


def _store(tmp_path: Path, text: str) -> Store:
    """Both are of one name: so a mount could take what is shown of the other for its own."""
    tree = tmp_path / f"{text}-tree"
    tree.mkdir()
    (tree / "what").write_text(text)
    store = Store(tmp_path / text)
    store.publish(tree)
    return store


def _read(root: int) -> bytes:
    descriptor = os.open("what", os.O_RDONLY, dir_fd=root)
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def _is_intact(host: Host, mount: Path) -> None:
    """The second mount is served, is known, and can have its worker replaced."""
    kill(*workers(supervisor_of(host, mount)))
    assert (mount / "what").read_bytes() == b"second"
    host.cvfs("refresh", mount)
    host.cvfs("reload", mount)
    files = [*Path(host.environment["CVFS_RUNTIME_DIR"]).iterdir()]
    assert len([path for path in files if path.suffix == ".sock"]) == 1
    assert {path.stem.partition(".")[2] for path in files if path.suffix != ".sock"} == {
        str(supervisor_of(host, mount))
    }
