"""Revision switches under a running mount."""

import contextlib
import mmap
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cvfs.mount.changing import refresh_mount
from cvfs.mount.runtime import Runtime
from tests.e2e.host import PYTHON, Host, Store, kill, run, wait_until
from tests.e2e.supervised import copy_code, supervisor_of, workers

OPTIONS = [("-o", "invalidate=epoch"), ("-o", "invalidate=exact"), ()]


@pytest.fixture
def filled(store: Store, tree: Path) -> Store:
    (tree / "a/b").mkdir(parents=True)
    (tree / "same").write_bytes(b"same" * 1000)
    (tree / "a/changes").write_bytes(b"old content")
    (tree / "a/goes").write_bytes(b"goes")
    (tree / "a/kind").write_bytes(b"a file")
    (tree / "a/run").write_text("#!/bin/sh\nread line\necho old\n")
    (tree / "a/run").chmod(0o755)
    store.publish(tree)
    return store


def change(store: Store, tree: Path) -> None:
    (tree / "a/changes").write_bytes(b"new content, and longer")
    (tree / "a/goes").unlink()
    (tree / "a/kind").unlink()
    (tree / "a/kind").mkdir()
    (tree / "a/new").write_bytes(b"new")
    (tree / "top").write_bytes(b"top")
    (tree / "a/b").chmod(0o700)
    (tree / "a/run").write_text("#!/bin/sh\nread line\necho new\n")
    store.publish(tree)


@pytest.mark.parametrize("options", OPTIONS)
def test_everything_new_is_seen_and_what_is_open_stays(
    host: Host, filled: Store, tree: Path, options: tuple[str, ...]
) -> None:
    mount = host.mount(filled.path, *options)
    for name in ("top", "a/new", "a/b/none"):
        assert not (mount / name).exists()
    run("find", mount, "-ls")
    inside = os.open(mount / "a", os.O_RDONLY)
    same = os.stat(mount / "same").st_ino
    runs = subprocess.Popen([mount / "a/run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with open(mount / "a/changes", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        (mount / "same").read_bytes()
        change(filled, tree)
        host.cvfs("refresh", mount)
        assert sorted(os.listdir(mount)) == ["a", "same", "top"]
        assert sorted(os.listdir(inside)) == sorted(os.listdir(mount / "a")) == ["b", "changes", "kind", "new", "run"]
        assert (mount / "a/changes").read_bytes() == b"new content, and longer"
        assert (mount / "a/new").read_bytes() == b"new"
        assert (mount / "top").read_bytes() == b"top"
        assert not (mount / "a/goes").exists()
        assert (mount / "a/kind").is_dir()
        assert (mount / "a/b").stat().st_mode & 0o777 == 0o700
        assert os.stat(mount / "same").st_ino == same
        assert file.read() == mapped[:] == b"old content"
        assert runs.communicate(b"\n", timeout=10)[0] == b"old\n"
        assert run(mount / "a/run", input=b"\n").stdout == b"new\n"
    os.close(inside)
    assert host.status(mount)["revision"] == 2
    host.umount(mount)


@pytest.mark.usefixtures("kept_kernel_caches")
def test_unchanged_files_keep_their_pages(host: Host, filled: Store, tree: Path) -> None:
    if host.engine == "pyfuse3":
        pytest.skip("it does not count requests")
    mount = host.mount(filled.path)
    (mount / "same").read_bytes()
    before = host.status(mount)["requests"]["READ"]
    change(filled, tree)
    host.cvfs("refresh", mount)
    assert (mount / "same").read_bytes() == b"same" * 1000
    assert host.status(mount)["requests"]["READ"] == before
    host.umount(mount)


@pytest.mark.parametrize("options", OPTIONS[1:])
@pytest.mark.usefixtures("kept_kernel_caches")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may bind")
def test_what_is_below_a_changed_directory_stays(
    host: Host, store: Store, tree: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """The pages of what is unchanged there, and what others have mounted there."""
    (tree / "lib/deep").mkdir(parents=True)
    (tree / "lib/point").mkdir()
    (tree / "lib/file").write_bytes(b"published")
    (tree / "lib/deep/same").write_bytes(b"same" * 1000)
    store.publish(tree)
    mount = host.mount(store.path, *options)
    (mount / "lib/deep/same").read_bytes()
    for name, kind in (("point", Path.mkdir), ("file", Path.touch)):
        kind(tmp_path / name)
        run("mount", "--bind", tmp_path / name, mount / "lib" / name)
    (tmp_path / "point/inside").touch()
    before = host.status(mount).get("requests", {}).get("READ")
    (tree / "lib/new").write_bytes(b"new")
    (tree / "lib").chmod(0o711)
    store.publish(tree)
    host.cvfs("refresh", mount)
    try:
        assert sorted(os.listdir(mount / "lib")) == ["deep", "file", "new", "point"]
        assert (mount / "lib").stat().st_mode & 0o777 == 0o711
        assert os.listdir(mount / "lib/point") == ["inside"]
        assert (mount / "lib/file").read_bytes() == b""
        assert (mount / "lib/deep/same").read_bytes() == b"same" * 1000
        assert host.status(mount).get("requests", {}).get("READ") == before
    finally:
        for name in ("point", "file"):
            run("umount", mount / "lib" / name, check=False)
        host.umount(mount)


def test_pinned_mount_stays(host: Host, filled: Store, tree: Path) -> None:
    mount = host.mount(filled.path, "--revision", "1")
    change(filled, tree)
    assert host.cvfs("refresh", mount, check=False).returncode == 1
    assert (mount / "a/goes").exists()
    host.umount(mount)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.timeout(1800)
def test_many_switches_under_load_leak_nothing(
    host: Host, filled: Store, tree: Path, workers: int, pytestconfig: pytest.Config
) -> None:
    """As many as a mount sees in a month with `--long`."""
    if host.engine == "pyfuse3" and workers > 1:
        pytest.skip("it has one process")
    count = 1000 if pytestconfig.getoption("--long") else 12
    mount = host.mount(filled.path, *(() if host.engine == "pyfuse3" else ("--workers", str(workers))))
    runtime = Runtime(Path(host.environment["CVFS_RUNTIME_DIR"]))
    with reading(mount) as problems:
        for number in range(count):
            size, new = 100 * (number % 100) + 10, f"a/n{number % 5}"
            (tree / "a/changes").write_bytes(b"%06d" % size + bytes(size - 6))
            (tree / new).unlink(missing_ok=True)
            (tree / new).write_bytes(b"%d" % number)
            filled.publish_here(tree)
            refresh_mount(mount, runtime)
            assert (mount / new).read_bytes() == b"%d" % number
            if number == count // 2:
                before = held(host.status(mount)["worker_pid"])
    after = held(host.status(mount)["worker_pid"])
    assert not problems
    assert after.descriptors <= before.descriptors + 4
    assert after.threads <= before.threads + 8
    # Pages and packs of old revisions stay in memory as long as the budget allows: 10 KiB for each switch here.
    assert after.anonymous_kib <= before.anonymous_kib + 4096 + 12 * count // 2
    host.umount(mount)


@contextlib.contextmanager
def reading(mount: Path) -> Iterator[list[str]]:
    """Read without pause, in a thread; what was not as it should be."""
    stop, problems = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if (mount / "same").read_bytes() != b"same" * 1000:
                problems.append("same")
            number = (mount / "a/changes").read_bytes()
            if number != b"old content" and int(number[:6]) != len(number):
                problems.append(f"mixed: {number[:10]!r}")
            os.listdir(mount / "a")

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield problems
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


class Held(NamedTuple):
    descriptors: int
    threads: int
    anonymous_kib: int


def held(pid: int) -> Held:
    """What a process has."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    return Held(len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"]), int(fields["RssAnon"].split()[0]))


def test_switch_that_a_dead_worker_had_begun_is_finished(host: Host, filled: Store, tree: Path) -> None:
    if host.engine == "pyfuse3":
        pytest.skip("it has no supervisor")
    mount = host.mount(filled.path)
    assert not (mount / "a/new").exists()
    os.listdir(mount / "a")
    change(filled, tree)
    asking = host.status(mount)["worker_pid"]
    command = subprocess.Popen([*PYTHON, "-m", "cvfs", "refresh", mount], env=host.environment)
    wait_until(lambda: host.status(mount)["revision"] == 2)
    kill(asking)
    assert command.wait(20) == 0  # it has asked the successor too
    assert host.status(mount)["revision"] == 2
    wait_until(lambda: not host.status(mount)["switching"])
    assert (mount / "a/new").read_bytes() == b"new"
    assert "goes" not in os.listdir(mount / "a")
    host.umount(mount)


@pytest.mark.parametrize("engine", ["channel"])
def test_a_switch_is_not_over_while_a_worker_has_not_followed(host: Host, filled: Store, tree: Path) -> None:
    """It may answer by the old revision when it goes on: then the kernel is told again."""
    mount = host.mount(filled.path, "--workers", "2")
    wait_until(lambda: host.status(mount)["workers"] == 2)
    (other,) = set(workers(supervisor_of(host, mount))) - {host.status(mount)["worker_pid"]}
    assert not (mount / "a/new").exists()
    change(filled, tree)
    os.kill(other, signal.SIGSTOP)
    try:
        host.cvfs("refresh", mount)
        status = host.status(mount)
        assert (status["revision"], status["switching"], status["workers"]) == (2, True, 1)
        assert (mount / "a/new").read_bytes() == b"new"
    finally:
        os.kill(other, signal.SIGCONT)
    wait_until(lambda: not host.status(mount)["switching"])
    host.umount(mount)


_BEGINNING = "        orders, request = self._orders, self._request\n        mount = ServedMount("


@pytest.mark.parametrize("engine", ["channel"])
def test_a_worker_that_takes_over_goes_on_with_the_newest(
    host: Host, filled: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only predecessor has switched after it had opened the repository, and before it took over."""
    monkeypatch.chdir("/")
    code, gate, there = (
        copy_code(host, tmp_path) / "cvfs/mount/channel_worker.py",
        tmp_path / "gate",
        tmp_path / "there",
    )
    mount = host.mount(filled.path)
    gate.touch()
    whole = code.read_text()
    assert whole.count(_BEGINNING) == 1
    wait = f"        Path({str(there)!r}).touch()\n        while Path({str(gate)!r}).exists(): os.sched_yield()\n"
    code.write_text(whole.replace(_BEGINNING, wait + _BEGINNING))
    reload = subprocess.Popen([*PYTHON, "-m", "cvfs", "reload", mount], env=host.environment)
    wait_until(there.exists)
    change(filled, tree)
    host.cvfs("refresh", mount)
    gate.unlink()
    assert reload.wait(30) == 0
    status = host.status(mount)
    assert (status["generation"], status["revision"]) == (1, 2)
    assert (mount / "a/new").read_bytes() == b"new"
    host.umount(mount)
