"""One cache for all repositories, mounts and processes of a host: fetched once, kept, never believed unseen."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import kernel_caches
from tests.e2e.host import Host, Server, Store, eventually, kill, run, wait_until
from tests.e2e.zoo import MIB, content
from tests.servers import FaultyServer, hang

LARGE = 6 * MIB + 1
SMALL = {f"dir{number % 3}/small{number}": content(40_000 + number) for number in range(12)}
FILES = SMALL | {f"big{number}": content(1_200_000 + number) for number in range(3)} | {"large": content(LARGE)}
DEADLINE_S = 5.0
"""Of a fetch, for the mounts here. The kernel, which is answered after it, asks once more."""
DEADLINE = ("--deadline", str(DEADLINE_S))


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Store:
    top = tmp_path_factory.mktemp("cached")
    for name, data in FILES.items():
        (top / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (top / "tree" / name).write_bytes(data)
    store = Store(top / "store")
    store.publish(top / "tree")
    return store


@pytest.fixture
def serving(published: Store, tmp_path: Path) -> Iterator[Server]:
    with Server(published.path, tmp_path) as server:
        yield server


def read_all(mount: Path) -> None:
    for name, data in FILES.items():
        assert (mount / name).read_bytes() == data


def test_two_mounts_at_once_fetch_everything_once(host: Host, serving: Server) -> None:
    mounts = [host.mount(serving.url), host.mount(serving.url)]
    assert host.status(mounts[0])["pid"] != host.status(mounts[1])["pid"]
    readers = [
        subprocess.Popen(["tar", "-c", "-C", mount, "."], stdout=subprocess.PIPE) for mount in mounts for _ in range(3)
    ]
    archives = [reader.communicate(timeout=60)[0] for reader in readers]
    assert all(reader.returncode == 0 for reader in readers)
    assert len(set(archives)) == 1
    assert len(archives[0]) > sum(map(len, FILES.values()))
    assert {path: count for path, count in Counter(serving.requests()).items() if count > 1} == {}


def test_a_second_mount_needs_no_byte_of_data(host: Host, serving: Server) -> None:
    read_all(host.mount(serving.url))
    before = serving.requests()
    read_all(host.mount(serving.url))
    assert serving.requests() == before


def test_repositories_share_what_is_equal(auto_host: Host, serving: Server, tmp_path: Path) -> None:
    read_all(auto_host.mount(serving.url))
    tree = tmp_path / "other"
    (tree / "elsewhere").mkdir(parents=True)
    for name, data in SMALL.items():
        (tree / "elsewhere" / name.replace("/", "-")).write_bytes(data)
    store = Store(tmp_path / "other-store", name="other.example.org")
    store.publish(tree)
    with Server(store.path, tmp_path) as other:
        mount = auto_host.mount(other.url, "--root", store.keys / "root.json")
        for name, data in SMALL.items():
            assert (mount / "elsewhere" / name.replace("/", "-")).read_bytes() == data
        assert len(other.requests()) == 2, "more than its manifest and its one page"
        auto_host.umount(mount)


def test_with_the_server_gone(host: Host, published: Store, tmp_path: Path) -> None:
    """What was read goes on, also in a new process; what was not fails soon; all is well again when it is back."""
    with Server(published.path, tmp_path) as server:
        mount = host.mount(server.url, *DEADLINE)
        known = [name for name in FILES if name.startswith("dir0")]
        for name in known:
            (mount / name).read_bytes()
        run("find", mount)
        url, port = server.url, server.port
    for _ in range(2):
        for name in known:
            assert (mount / name).read_bytes() == FILES[name]
        _fails_soon(lambda at=mount: (at / "large").read_bytes())
        host.umount(mount)
        warned = host.cvfs("mount", url, mount, "--engine", host.engine, *DEADLINE).stderr
        assert warned.startswith(b"cvfs: warning: ")
        assert host.status(mount)["state"] == "offline"
    assert host.cvfs("status", mount, check=False).returncode == 1
    with Server(published.path, tmp_path, port=port):
        assert eventually((mount / "large").read_bytes) == FILES["large"]
        host.umount(mount)


def _fails_soon(read: Callable[[], object]) -> None:
    started = time.monotonic()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says more than a text
        read()
    assert caught.value.errno in (errno.EIO, errno.ETIMEDOUT)
    assert time.monotonic() - started < 6 * DEADLINE_S


def test_a_server_that_hangs(auto_host: Host, published: Store) -> None:
    """A reader can be killed at once, the others get an error in time, and what is cached is not held up."""
    with FaultyServer(published.path) as server:
        mount = auto_host.mount(server.url, *DEADLINE)
        (mount / "dir0/small0").read_bytes()
        server.misbehave(hang)
        started = time.monotonic()
        waiting = [
            subprocess.Popen(["cat", mount / "large"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        server.wait_until(lambda: any(seen.path.startswith("/data/") for seen in server.seen[-1:]))
        assert (mount / "dir0/small0").read_bytes() == FILES["dir0/small0"]
        waiting[0].kill()
        waiting[0].communicate(timeout=5)
        error = waiting[1].communicate(timeout=6 * DEADLINE_S)[1]
        assert b"Input/output error" in error or b"timed out" in error
        assert time.monotonic() - started < 6 * DEADLINE_S
        server.recover()
        assert eventually((mount / "large").read_bytes) == FILES["large"]
        auto_host.umount(mount)


@pytest.fixture
def connections() -> Iterator[Path]:
    """What the kernel says of each FUSE connection: systemd mounts it, and where nobody has, the test does."""
    path = Path("/sys/fs/fuse/connections")
    has_mounted = not path.is_mount()
    if has_mounted:
        run("mount", "-t", "fusectl", "fusectl", path)
    yield path
    if has_mounted:
        run("umount", path)


WAITING = """
import os, sys, threading
large = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(large, 0, 0, os.POSIX_FADV_RANDOM)
for number in range(200):
    threading.Thread(target=os.pread, args=(large, 1, number * os.sysconf("SC_PAGE_SIZE"))).start()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount fusectl")
def test_readers_who_wait_for_a_server_that_hangs_are_in_nobodys_way(
    host: Host, store: Store, tree: Path, connections: Path
) -> None:
    """Each of them waits for a page of its own."""
    (tree / "d").mkdir()
    cached = os.urandom(300_000)  # fewer are read past the others
    (tree / "d/0").write_bytes(b"small")
    (tree / "d/1").write_bytes(cached)
    (tree / "large").write_bytes(os.urandom(5 << 20))
    store.publish(tree)
    with FaultyServer(store.path) as server:
        mount = host.mount(server.url, *DEADLINE)
        (mount / "d/0").read_bytes()  # the other is in the same pack
        server.misbehave(hang)
        waiting = subprocess.Popen([sys.executable, "-c", WAITING, mount / "large"])
        try:
            waits = connections / str(os.minor(mount.stat().st_dev)) / "waiting"
            wait_until(lambda: int(waits.read_text()) > 64)
            assert run("cat", mount / "d/1", timeout_s=5).stdout == cached
        finally:
            waiting.kill()
            waiting.wait(10)
    wait_until(lambda: not int(waits.read_text()))
    host.umount(mount)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _overwrite(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(size // 2)
        file.write(b"FALSE BYTES"[: size - size // 2])


def _grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def _empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGES = (_truncate, _overwrite, _grow, _empty, Path.unlink)


def _cached(host: Host) -> list[Path]:
    kinds = ("objects", "packs", "blobs", "large")
    return [path for kind in kinds for path in (host.cache / kind).rglob("*") if path.is_file()]


def test_damaged_cache_files_are_noticed_and_fetched_again(auto_host: Host, serving: Server) -> None:
    mount = auto_host.mount(serving.url)
    read_all(mount)
    auto_host.umount(mount)  # all is stored by then
    files = _cached(auto_host)
    assert {path.relative_to(auto_host.cache).parts[0] for path in files} >= {"packs", "blobs", "large"}
    before = len(serving.requests())
    for number, path in enumerate(files):
        DAMAGES[number % len(DAMAGES)](path)
    auto_host.mount(serving.url, on=mount)
    read_all(mount)
    assert len(serving.requests()) > before
    auto_host.umount(mount)
    again = len(serving.requests())  # also for what was just being read ahead
    auto_host.mount(serving.url, on=mount)
    read_all(mount)
    assert len(serving.requests()) == again


def test_damaged_cache_files_are_never_served(auto_host: Host, published: Store, tmp_path: Path) -> None:
    with Server(published.path, tmp_path) as server:
        mount = auto_host.mount(server.url)
        read_all(mount)
        run("find", mount)
        auto_host.umount(mount)
        for path in _cached(auto_host):
            if path.relative_to(auto_host.cache).parts[0] != "blobs":
                _overwrite(path)
        auto_host.mount(server.url, on=mount)
    # The metadata is whole, all contents are wrong, and there is nobody to ask.
    for name in ("dir0/small0", "big1", "large"):
        _fails_soon(lambda name=name: (mount / name).read_bytes()[:1] or None)
    auto_host.umount(mount)


def test_a_cache_that_is_wiped_under_a_mount(auto_host: Host, serving: Server) -> None:
    mount = auto_host.mount(serving.url)
    read_all(mount)
    for kind in ("packs", "blobs", "large"):
        shutil.rmtree(auto_host.cache / kind)
    kernel_caches.drop()
    read_all(mount)
    auto_host.remount(mount, serving.url)
    read_all(mount)


@pytest.fixture
def small_disk(auto_host: Host) -> Iterator[Path]:
    """A file system of 3 MiB for the cache."""
    disk = auto_host.top / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", disk)
    yield disk
    run("umount", "--lazy", disk)


def test_a_full_cache_does_not_break_reads(auto_host: Host, serving: Server, small_disk: Path) -> None:
    mount = auto_host.mount(serving.url, "--cache", small_disk)
    with (small_disk / "of others").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    read_all(mount)
    wait_until(lambda: auto_host.status(mount)["fetcher"]["uncached"] > 0)
    wait_until(lambda: "serving uncached" in auto_host.log())
    auto_host.remount(mount, serving.url, "--cache", small_disk)
    read_all(mount)
    auto_host.umount(mount)


def test_a_cache_on_a_read_only_disk_does_not_break_reads(auto_host: Host, serving: Server, small_disk: Path) -> None:
    mount = auto_host.mount(serving.url, "--cache", small_disk)
    (mount / "dir0/small0").read_bytes()
    auto_host.umount(mount)
    run("mount", "-o", "remount,ro", small_disk)
    auto_host.mount(serving.url, "--cache", small_disk, on=mount)
    read_all(mount)
    assert not auto_host.status(mount)["cache"]["writable"]
    assert "uncached" in auto_host.log()
    auto_host.umount(mount)


def test_a_daemon_that_is_killed_while_it_fetches_harms_no_other(auto_host: Host, published: Store) -> None:
    with FaultyServer(published.path) as server:
        victim, other = auto_host.mount(server.url, *DEADLINE), auto_host.mount(server.url)
        run("find", other)
        server.misbehave(hang, times=1)
        reader = subprocess.Popen(["cat", victim / "big0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        count = len(server.seen)
        server.wait_until(lambda: len(server.seen) > count or server.open_connections > 0)
        kill(auto_host.status(victim)["pid"])
        reader.wait(10)  # who uses a mount that is taken away is served: here once a mirror has been tried in vain
        started = time.monotonic()
        assert (other / "big0").read_bytes() == FILES["big0"]
        assert time.monotonic() - started < 10
        run("umount", "--lazy", victim, check=False)
        auto_host.umount(other)
