"""A directory of a million names: no special case, and no time in proportion to its size to find one of them."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvfs.format.blob import blob_path, seal
from cvfs.format.tree import build
from cvfs.model import NO_CONTENT, BlobRef, Entry, Manifest, Record
from publisher.repository.create import Security, sign_first
from publisher.signing.keys import Keys
from publisher.store import create_store
from tests.e2e.host import NAME, Host, run, trust

COUNT = 1_000_000
_MEMORY_KIB = 120 << 10


def _records() -> Iterator[Record]:
    yield Record(b"", Entry(b"", stat.S_IFDIR | 0o755, 0, 0, 0, 0, 3, 0, 0, b"", b"", ()), NO_CONTENT)
    yield Record(b"", Entry(b"many", stat.S_IFDIR | 0o755, 0, 0, 0, 0, 2, 0, 0, b"", b"", ()), NO_CONTENT)
    for number in range(COUNT):
        yield Record(
            b"many", Entry(b"%07d" % number, stat.S_IFIFO | 0o644, 0, 0, number, 0, 1, 0, 0, b"", b"", ()), NO_CONTENT
        )


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with fifos, made from records: a million files on the disk would take longer to make than to publish."""
    top = tmp_path_factory.mktemp("many")

    def put(plain: bytes) -> BlobRef:
        ref, stored = seal(plain)
        path = top / blob_path(ref.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored)
        return ref

    root = build(_records(), put)
    manifest = Manifest(NAME, 1, 0, root.page, root.level, root.summary, None)
    sign_first(create_store(str(top)), manifest, Keys(trust().keys_for(top)), Security(), int(trust().epoch))
    return top


def test_a_directory_of_a_million_names(auto_host: Host, many: Path) -> None:
    mount = auto_host.mount(many)
    started = time.monotonic()
    for number in (0, 1, COUNT // 2, 777_777, COUNT - 1):
        assert os.lstat(mount / f"many/{number:07}").st_mtime_ns == number
    with pytest.raises(FileNotFoundError):
        os.lstat(mount / f"many/{COUNT:07}")
    assert time.monotonic() - started < 5, "looked through the whole directory to find a few names"
    names = run("find", mount / "many", "-mindepth", "1", "-printf", "%f\n", timeout_s=110).stdout.split()
    assert len(names) == COUNT
    assert set(names) == {b"%07d" % number for number in range(COUNT)}
    assert os.statvfs(mount).f_files == COUNT + 2
    assert os.lstat(mount / "many/0999999").st_mtime_ns == COUNT - 1
    assert _resident_kib(auto_host.status(mount)["pid"]) < _MEMORY_KIB


def _resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
