"""cvfs mount, umount and status on real mounts: how they begin, fail and end, and what must not be left of them."""

import contextlib
import errno
import json
import logging
import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import trio

from cvfs.cache.directory import LAYOUT
from cvfs.format.manifest import encode_manifest
from cvfs.mount.control import Control
from cvfs.mount.logs import RecentWarnings
from cvfs.mount.overview import mount_at
from cvfs.mount.place import find_place
from cvfs.mount.point import is_dead
from cvfs.mount.request import may_allow_other
from cvfs.mount.runtime import Runtime, ask
from cvfs.mount.unmounting import _explain
from tests import servers
from tests.command import Command, wait_until
from tests.servers import FaultyServer
from tests.small_store import SmallStore, Tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")

SECONDS = 10.0
"""What "within seconds" means on a busy machine."""


@pytest.fixture
def published() -> list[Tree]:
    return [{b"old": b"old"}, {b"a/hello.txt": b"hello\n", b"big": bytes(100_000), b"link": "a/hello.txt"}]


def test_mount_can_be_used_at_once_and_ends_whole(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    cvfs.ok("mount", server.url, mnt)
    assert (mnt / "a/hello.txt").read_bytes() == b"hello\n"
    assert os.readlink(mnt / "link") == "a/hello.txt"
    assert len(cvfs.processes()) == 3  # supervisor, template, worker
    cvfs.ok("umount", mnt)
    assert not cvfs.leftovers()
    assert "mounted revision 2 of small.example.org" in cvfs.log()
    assert len(cvfs.log().splitlines()) == 2


def test_mount_is_read_only_and_harmless(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    cvfs.ok("mount", server.url, mnt)
    (line,) = [line.split() for line in Path("/proc/mounts").read_text().splitlines() if f" {mnt} " in line]
    assert line[0] == server.url
    assert line[2] == "fuse.cvfs"
    assert {"ro", "nosuid", "nodev", "default_permissions", "allow_other"} <= set(line[3].split(","))
    cvfs.ok("umount", mnt)


def test_options_of_mount(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    (mnt / "there before").touch()
    cvfs.ok(
        "mount",
        server.url,
        mnt,
        "-o",
        "nonempty,ro,noatime,x-systemd.automount",
        "--suid",
        "-o",
        "dev",
        "--no-allow-other",
    )
    (line,) = [line.split() for line in Path("/proc/mounts").read_text().splitlines() if f" {mnt} " in line]
    assert not {"nosuid", "nodev", "allow_other"} & set(line[3].split(","))
    cvfs.ok("umount", mnt)


@pytest.mark.parametrize("engine", ["channel", "pyfuse3"])
def test_mount_on_a_symbolic_link(cvfs: Command, server: FaultyServer, mnt: Path, engine: str) -> None:
    """What it leads to is the mount point: the kernel lists it by no other name."""
    near, far = mnt.with_name("near"), mnt.with_name("far")
    near.symlink_to("mnt")
    far.symlink_to(near)
    for link in (f"{far}/", near, f"{mnt}/../far"):
        cvfs.ok("mount", server.url, link, "--engine", engine)
        assert cvfs.mounts() == [mnt]
        assert (far / "a/hello.txt").read_bytes() == b"hello\n"
        assert f"already mounted on {mnt}" in cvfs.refused("mount", server.url, far)
        cvfs.ok("umount", near)
    cvfs.ok("mount", "--all", far, "--engine", engine)
    cvfs.ok("umount", mnt)
    assert not cvfs.leftovers()


def test_links_in_a_circle_are_refused(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    round_, and_round = mnt.with_name("round"), mnt.with_name("and round")
    round_.symlink_to(and_round)
    and_round.symlink_to(round_)
    assert "too many symbolic links" in cvfs.refused("mount", server.url, round_)
    assert "symbolic links" in cvfs.refused("mount", server.url, round_ / "below")


def test_what_is_mounted_behind_a_link_is_not_asked(
    cvfs: Command, server: FaultyServer, mnt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hang: then any question would be the last. A dead mount there is taken away, as everywhere."""
    cvfs.ok("mount", server.url, mnt)
    link = mnt.with_name("link")
    link.symlink_to(mnt)
    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", _but(os.readlink, mnt))
        assert find_place(link) == mnt
    cvfs.kill_all(cvfs.status(mnt)["pid"])
    outcome = cvfs("mount", server.url, link)
    assert outcome.returncode == 0, outcome
    assert (mnt / "a/hello.txt").read_bytes() == b"hello\n"
    cvfs.ok("umount", mnt)


@pytest.mark.parametrize("engine", ["channel", "pyfuse3"])
def test_mount_that_hangs_is_found_by_a_link(
    cvfs: Command, server: FaultyServer, mnt: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its root is not asked for what it is, nor for long what is below it."""
    cvfs.ok("mount", server.url, mnt, "--engine", engine, "--strict-freshness")  # the kernel believes nothing for long
    link = mnt.with_name("link")
    link.symlink_to(mnt)
    with _stopped(cvfs.processes()):
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(["stat", mnt], timeout=1, check=False, capture_output=True)
        assert cvfs.status(link)["state"] == "unknown"
        assert "no answer from the process" in cvfs.refused("refresh", link)
        with monkeypatch.context() as patch:
            patch.setattr("cvfs.fuse.mountinfo._PATIENCE_S", 0.01)
            assert find_place(link / "a" / "link") == mnt / "a" / "link"
        cvfs.ok("umount", "--lazy", link)
        assert not cvfs.mounts()
    wait_until(lambda: not cvfs.leftovers())


@contextlib.contextmanager
def _stopped(pids: Iterable[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _but(function: Callable[[Path], str], forbidden: Path) -> Callable[[Path], str]:
    def checked(path: Path) -> str:
        assert path != forbidden
        return function(path)

    return checked


def test_older_revision_is_mounted(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    cvfs.ok("mount", server.url, mnt, "--revision", "1")
    assert os.listdir(mnt) == ["old"]
    assert cvfs.status(mnt)["revision"] == 1
    cvfs.ok("umount", mnt)


def test_umount_of_others_is_noticed(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    cvfs.ok("mount", server.url, mnt)
    subprocess.run(["umount", mnt], check=True)
    wait_until(lambda: not cvfs.leftovers())


def test_two_mounts_of_one_repository(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    other = mnt.with_name("other")
    other.mkdir()
    cvfs.ok("mount", server.url, mnt)
    cvfs.ok("mount", server.url, other)
    assert os.listdir(mnt) == os.listdir(other)
    assert {str(mnt), str(other)} <= {
        mount["mountpoint"] for mount in json.loads(cvfs("status", "--json").stdout)["mounts"]
    }
    cvfs.ok("umount", mnt)
    assert os.listdir(other)
    cvfs.ok("umount", other)


def test_at_most_one_of_many_mounts_at_once_succeeds(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    racers = [cvfs.start("mount", server.url, mnt, stderr=subprocess.PIPE) for _ in range(4)]
    complaints = [racer.communicate()[1] for racer in racers]
    assert sorted(racer.returncode for racer in racers) == [0, 1, 1, 1]
    assert sum(b"is already mounted" in complaint for complaint in complaints) == 3
    assert len(cvfs.mounts()) == 1
    cvfs.ok("umount", mnt)


# Failures: each says why in one line, within seconds, and leaves nothing; the fixture looks for what is left


def refused(cvfs: Command, *arguments: str | Path) -> str:
    started = time.monotonic()
    why = cvfs.refused("mount", *arguments)
    assert time.monotonic() - started < SECONDS
    assert not cvfs.leftovers()
    return why


def test_no_repository(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    assert refused(cvfs, server.url + "/nothing", mnt).startswith(f"no repository at {server.url}/nothing")


def test_web_page(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    server.misbehave(servers.html)
    assert "it serves a web page" in refused(cvfs, server.url, mnt)


def test_unknown_format(cvfs: Command, server: FaultyServer, store: SmallStore, mnt: Path) -> None:
    data = encode_manifest(store.publish({})).replace(b'"format": 1', b'"format": 9')
    store.sign(store.put(data), data)
    assert "format version 9; this cvfs reads version 1" in refused(cvfs, server.url, mnt)


def test_broken_root(cvfs: Command, server: FaultyServer, store: SmallStore, mnt: Path) -> None:
    for blob in store.blobs():
        blob.write_bytes(b"x" * blob.stat().st_size)
    assert "wrong bytes from http" in refused(cvfs, server.url, mnt)


@pytest.mark.parametrize("fault", [servers.hang, servers.status("503 Busy")])
def test_server_that_does_not_answer(cvfs: Command, server: FaultyServer, mnt: Path, fault: servers.Fault) -> None:
    cvfs.environment["CVFS_START_DEADLINE_S"] = "2"
    server.misbehave(fault)
    assert server.url in refused(cvfs, server.url, mnt)


def test_server_down(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    assert "connection refused" in refused(cvfs, "http://127.0.0.1:1", mnt)


def test_mount_points_that_are_none(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    assert "make it first (mkdir -p" in refused(cvfs, server.url, mnt / "missing")
    (mnt / "file").touch()
    assert "a directory is needed" in refused(cvfs, server.url, mnt / "file")
    assert "it is not empty" in refused(cvfs, server.url, mnt)


def test_mount_point_in_use(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    cvfs.ok("mount", server.url, mnt)
    assert f"is already mounted on {mnt}; unmount it first" in cvfs.refused("mount", server.url, mnt)
    assert os.listdir(mnt)
    cvfs.ok("umount", mnt)
    subprocess.run(["mount", "-t", "tmpfs", "none", mnt], check=True)
    try:
        assert "(tmpfs) is mounted there" in cvfs.refused("mount", server.url, mnt)
        assert "is not a mount of cvfs" in cvfs.refused("umount", mnt)
    finally:
        subprocess.run(["umount", mnt], check=True)


def test_cache_that_cannot_be_used(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    cvfs.cache.mkdir()
    (cvfs.cache / "CVFS-CACHE").write_text(f"{LAYOUT + 1}\n")
    assert "has layout" in refused(cvfs, server.url, mnt)
    os.chown(cvfs.cache, 12345, 12345)
    assert "belongs to uid 12345" in refused(cvfs, server.url, mnt)


def test_runtime_directory_of_another_user(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    cvfs.runtime.mkdir()
    os.chown(cvfs.runtime, 12345, 12345)
    assert "is not a directory of this user alone" in refused(cvfs, server.url, mnt)


def test_log_that_cannot_be_written(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    assert "cannot log to" in refused(cvfs, server.url, mnt, "--log-file", server.directory / "manifest.json" / "log")


def test_options_that_mean_nothing(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    assert "unknown mount option 'bogus'" in refused(cvfs, server.url, mnt, "-o", "ro,bogus")
    assert "read-only" in refused(cvfs, server.url, mnt, "-o", "rw")


def test_no_fuse(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    """In a mount namespace without /dev/fuse."""
    script = 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"'
    line = ["unshare", "--mount", "sh", "-c", script, "sh", *cvfs.line("mount", server.url, mnt)]
    outcome = subprocess.run(line, env=cvfs.environment, capture_output=True, check=False)
    assert outcome.returncode == 1
    assert b"cannot open /dev/fuse" in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1


# Ends


def test_busy_mount_says_who_uses_it(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    cvfs.ok("mount", server.url, mnt)
    with subprocess.Popen(["sleep", "60"], cwd=mnt) as user:
        assert f"in use by sleep ({user.pid}); end them, or use cvfs umount --lazy" in cvfs.refused("umount", mnt)
        assert os.listdir(mnt)
        cvfs.ok("umount", "--lazy", mnt)
        assert not cvfs.mounts()
        user.kill()
    wait_until(lambda: not cvfs.leftovers())


def test_only_what_is_in_use_is_said_to_be(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w"):
        for number, is_use in ((errno.EBUSY, True), (errno.EPERM, False)):
            reason = f"cannot unmount {tmp_path}: {os.strerror(number)}"
            assert (f"({os.getpid()})" in _explain(tmp_path, reason)) is is_use
            assert (_explain(tmp_path, reason) == reason) is not is_use


def test_a_mount_that_hangs_holds_one_thread_however_often_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, before = threading.Event(), threading.active_count()

    def hang(_: Path) -> None:
        answers.wait()
        raise OSError(errno.ENOTCONN, "")

    monkeypatch.setattr("os.statvfs", hang)
    monkeypatch.setattr("cvfs.mount.point._PATIENCE_S", 0.01)
    assert [is_dead(tmp_path) for _ in range(20)] == [False] * 20
    assert threading.active_count() == before + 1
    answers.set()
    wait_until(lambda: threading.active_count() == before)
    monkeypatch.setattr("cvfs.mount.point._PATIENCE_S", 10)
    assert is_dead(tmp_path)


def test_what_went_wrong_lately_can_be_read_while_more_goes_wrong() -> None:
    recent = RecentWarnings()
    record = logging.LogRecord("name", logging.ERROR, "path", 1, "message", (), None)
    recent.emit(record)
    for _ in recent.events:
        recent.emit(record)
    assert len(recent.events) == 2
    assert recent.errors_since(0) == 2


def test_a_status_may_be_as_large_as_it_has_to_be(tmp_path: Path) -> None:
    """5,000 repositories that are in use."""
    status = {"repositories": [{"name": f"{number}.example.org", "about": "x" * 2000} for number in range(5000)]}
    runtime = Runtime(tmp_path)
    with runtime.listen(tmp_path) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(json.dumps(status).encode())

        thread = threading.Thread(target=answer)
        thread.start()
        assert ask(runtime.socket_of(tmp_path), "status", 20) == status
        thread.join()


def test_umount_of_nothing(cvfs: Command, mnt: Path) -> None:
    assert cvfs.refused("umount", mnt) == f"nothing is mounted on {mnt}"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CVFS_CONFIG", "{top}/gone", "there is no directory {top}/gone, which CVFS_CONFIG names"),
        ("CVFS_CONFIG", "{top}", "{top}/config.toml:1: "),
        ("CVFS_DEADLINE_S", "soon", "environment CVFS_DEADLINE_S: "),
    ],
)
def test_what_is_mounted_needs_no_configuration(
    cvfs: Command, server: FaultyServer, mnt: Path, variable: str, value: str, said: str
) -> None:
    """It is looked at, changed and ended all the same, by who is told what is wrong."""
    cvfs.ok("mount", server.url, mnt)
    (cvfs.top / "config.toml").write_text("cache = = 1\n")
    cvfs.environment[variable] = value.format(top=cvfs.top)
    for command in (("status",), ("status", mnt), ("refresh", mnt), ("reload", mnt), ("umount", mnt)):
        outcome = cvfs(*command)
        assert outcome.returncode == 0, outcome
        (line,) = outcome.stderr.decode().splitlines()
        assert line.startswith(f"cvfs: warning: {said.format(top=cvfs.top)}")
    assert not cvfs.leftovers()
    assert said.format(top=cvfs.top) in cvfs.refused("mount", server.url, mnt)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_daemon_unmounts_when_it_is_told_to_end(
    cvfs: Command, server: FaultyServer, mnt: Path, number: signal.Signals
) -> None:
    cvfs.ok("mount", server.url, mnt)
    os.kill(cvfs.status(mnt)["pid"], number)
    wait_until(lambda: not cvfs.leftovers())


def test_mount_whose_daemon_was_killed_is_taken_over(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    cvfs.ok("mount", server.url, mnt)
    cvfs.kill_all(cvfs.status(mnt)["pid"])
    assert cvfs.status(mnt)["state"] == "dead"
    outcome = cvfs("mount", server.url, mnt)
    assert outcome.returncode == 0
    assert b"whose process is gone" in outcome.stderr
    assert os.listdir(mnt)
    cvfs.ok("umount", mnt)


def test_mount_goes_with_its_supervisor(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    """Whoever uses it goes on until he is done."""
    cvfs.ok("mount", server.url, mnt)
    with open(mnt / "big", "rb") as file:
        os.kill(cvfs.status(mnt)["pid"], signal.SIGKILL)
        wait_until(lambda: not cvfs.mounts())
        assert file.read() == bytes(100_000)
        assert os.listdir(mnt) == []
    wait_until(lambda: not cvfs.leftovers())


def test_dead_mount_is_unmounted(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    cvfs.ok("mount", server.url, mnt)
    cvfs.kill_all(cvfs.status(mnt)["pid"])
    cvfs.ok("umount", mnt)
    assert not cvfs.mounts()
    assert not list(cvfs.runtime.iterdir())
    other = mnt.with_name("other")
    other.mkdir()
    cvfs.ok("mount", server.url, other)
    assert len(list(cvfs.runtime.glob("*.sock"))) == 1
    cvfs.ok("umount", other)


def test_interrupted_mount_leaves_nothing(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    server.misbehave(servers.hang)
    with cvfs.start("mount", server.url, mnt, stderr=subprocess.PIPE) as process:
        server.wait_until(lambda: bool(server.requests), timeout_s=SECONDS)
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=SECONDS)
    assert (process.returncode, complaint.strip()) == (130, b"cvfs: error: interrupted")
    assert not cvfs.leftovers()


@pytest.mark.parametrize("engine", ["channel", "pyfuse3"])
def test_killed_mount_leaves_nothing(cvfs: Command, server: FaultyServer, mnt: Path, engine: str) -> None:
    """It cannot say so: that it is gone is noticed by who was to serve the mount."""
    cvfs.runtime.mkdir(mode=0o700)
    lock = Runtime(cvfs.runtime).try_lock()
    assert lock is not None
    with cvfs.start("mount", server.url, mnt, "--engine", engine) as process:
        server.wait_until(lambda: bool(server.requests), timeout_s=SECONDS)
        process.kill()
    os.close(lock)
    wait_until(lambda: "mounted revision 2" in cvfs.log())
    wait_until(lambda: not cvfs.leftovers())
    assert "who asked for the mount is gone: it is taken away" in cvfs.log()


def test_mount_from_a_directory_that_is_gone(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    """What is mounted where is said without it."""
    script = f'mkdir {cvfs.top}/gone && cd {cvfs.top}/gone && rmdir {cvfs.top}/gone && exec "$@"'
    for options in ((), ("--engine", "pyfuse3"), ("--ca", "ca.pem")):
        line = ["sh", "-c", script, "sh", *cvfs.line("mount", server.url, mnt, *options)]
        outcome = subprocess.run(line, check=False, env=cvfs.whole_environment, capture_output=True, timeout=40)
        if "--ca" in options:
            assert outcome.stderr.startswith(b"cvfs: error: the current directory is gone")
        else:
            assert (outcome.returncode, outcome.stderr) == (0, b"")
            cvfs.ok("umount", mnt)


# Paths that are not UTF-8


@pytest.mark.parametrize("engine", ["channel", "pyfuse3"])
def test_paths_need_not_be_text(cvfs: Command, server: FaultyServer, mnt: Path, tmp_path: Path, engine: str) -> None:
    """A mount point, a cache, a log, metrics: all that is said of them says so, and as bytes where that is text."""
    odd, cache, metrics = (tmp_path / os.fsdecode(name) for name in (b"mm\xe9", b"c\xe9", b"metrics\xe9"))
    odd.mkdir()
    options = ("--cache", cache, "--log-file", tmp_path / "log\udce9", "--metrics", f"textfile:{metrics}")
    cvfs.ok("mount", server.url, odd, "--engine", engine, *options)
    assert (odd / "a/hello.txt").read_bytes() == b"hello\n"
    assert cvfs.status(odd)["mountpoint"] == str(odd)
    assert cvfs.status(odd)["cache"]["directory"] == str(cache)
    assert b"mm\\xe9" in cvfs.ok("status")
    for words in (("status", odd), ("refresh", odd), *([("reload", odd)] if engine == "channel" else [])):
        assert os.fsencode(odd) in cvfs.ok(*words)
    assert b"mm\\xe9: ok" in cvfs("doctor").stdout
    wait_until(metrics.exists)
    assert b"mm\\\\xe9" in metrics.read_bytes()
    cvfs.ok("umount", odd)
    assert b"mounted revision 2" in (tmp_path / "log\udce9").read_bytes()
    assert os.fsencode(cache) in cvfs.ok("cache", "info", "--cache", cache)
    (lock,) = cvfs.runtime.glob("metrics-*.lock")  # which stays, for who exports next
    lock.unlink()
    assert "already mounted on" not in cvfs.refused("mount", server.url, odd / "no\udcff")


@pytest.mark.parametrize("engine", ["channel", "pyfuse3"])
def test_service_manager_is_told_of_a_path_that_is_no_text(
    cvfs: Command, server: FaultyServer, mnt: Path, engine: str
) -> None:
    odd = mnt / os.fsdecode(b"mm\xe9")
    odd.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(cvfs.top / "notify"))
        manager.settimeout(SECONDS)
        cvfs.environment |= {"NOTIFY_SOCKET": str(cvfs.top / "notify"), "CVFS_LOG_FORMAT": "json"}
        with cvfs.start("mount", "--all", odd, "--foreground", "--engine", engine, stderr=subprocess.PIPE) as process:
            assert manager.recv(1000).decode().startswith("READY=1\nSTATUS=serving 0 repositories on ")
            process.terminate()
            _, log = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert str(odd) in json.loads(log.splitlines()[0])["message"]


# The daemon


def test_daemon_is_detached(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    """It holds nothing of whoever started it: `cvfs mount | cat` must end."""
    with cvfs.start("mount", server.url, mnt, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.communicate(timeout=SECONDS) == (b"", None)
    pid = cvfs.status(mnt)["pid"]
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert os.readlink(f"/proc/{pid}/fd/2") == cvfs.status(mnt)["log"]
    cvfs.ok("umount", mnt)


def test_foreground_tells_the_service_manager(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(cvfs.top / "notify"))
        manager.settimeout(SECONDS)
        cvfs.environment["NOTIFY_SOCKET"] = str(cvfs.top / "notify")
        with cvfs.start("mount", server.url, mnt, "--foreground", stderr=subprocess.PIPE) as process:
            assert manager.recv(1000).startswith(b"READY=1\nSTATUS=serving revision 2")
            assert os.listdir(mnt)
            process.terminate()
            assert manager.recv(1000) == b"STOPPING=1"
            _, log = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert [line.split(b" ")[2] for line in log.splitlines()] == [b"INFO"] * 3


def test_journal_gets_priorities(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    with open(cvfs.top / "journal", "wb") as journal, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(cvfs.top / "notify"))
        manager.settimeout(SECONDS)
        status = os.fstat(journal.fileno())
        cvfs.environment |= {
            "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}",
            "NOTIFY_SOCKET": str(cvfs.top / "notify"),
        }
        with cvfs.start("mount", server.url, mnt, "-f", stderr=journal) as process:
            assert manager.recv(1000).startswith(b"READY=1\n")
            process.terminate()
    assert "mounted" in (cvfs.top / "journal").read_text()
    for line in (cvfs.top / "journal").read_text().splitlines():
        assert line.startswith("<6>")


def test_log_has_one_line_an_event(cvfs: Command, server: FaultyServer, store: SmallStore, mnt: Path) -> None:
    cvfs.ok("mount", server.url, mnt)
    server.misbehave(servers.flip(0))
    with pytest.raises(OSError, match="Input/output error"):
        (mnt / "big").read_bytes()
    status = cvfs.status(mnt)
    assert status["errors"] >= 1
    assert status["errors_last_hour"] >= 1
    assert "wrong bytes" in status["events"][-1]["message"]
    assert "wrong bytes from http" in cvfs.log()
    assert all(line[:2] == "20" for line in cvfs.log().splitlines())
    server.recover()
    assert (mnt / "big").read_bytes() == bytes(100_000)
    cvfs.ok("umount", mnt)


# Status and offline


def test_status_says_what_there_is_to_know(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    assert os.fsencode(mnt) not in cvfs("status").stdout
    cvfs.ok("mount", server.url, mnt)
    (mnt / "a/hello.txt").read_bytes()
    status = cvfs.status(mnt)
    expected = {
        "url": server.url,
        "repository": "small.example.org",
        "revision": 2,
        "mountpoint": str(mnt),
        "state": "ok",
        "offline": False,
        "errors": 0,
    }
    assert {name: status[name] for name in expected} == expected
    assert status["cache"]["directory"] == str(cvfs.cache)
    assert status["fetcher"]["fetched_blobs"] == 2
    assert status["transport"]["requests"] == 7  # timestamp, root, snapshot, targets, manifest, page, pack
    assert os.fsencode(mnt) in cvfs("status").stdout
    assert b"fetcher.misses:" in cvfs.ok("status", mnt)
    assert "no repository is mounted on" in cvfs.refused("status", mnt.parent)
    cvfs.ok("umount", mnt)


def test_status_lists_a_foreign_mount_and_does_not_judge_it(
    cvfs: Command, server: FaultyServer, mnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose it is, the kernel says: one's own is no other's for having another runtime directory."""
    cvfs.ok("mount", server.url, mnt)
    other = Runtime(tmp_path / "other-run")
    shown = cvfs("status", "--json", extra={"CVFS_RUNTIME_DIR": str(other.directory)})
    assert shown.returncode == 1
    listed = {mount["mountpoint"]: mount["state"] for mount in json.loads(shown.stdout)["mounts"]}
    assert listed[str(mnt)] == "unknown"
    status = mount_at(mnt, other)
    assert (status["state"], "no control socket" in status["problem"]) == ("unknown", True)
    monkeypatch.setattr(os, "geteuid", lambda: 61234)
    assert mount_at(mnt, other)["state"] == "foreign"
    cvfs.ok("umount", mnt)


@pytest.mark.parametrize("engine", ["channel", "pyfuse3"])
def test_control_socket_that_was_removed_is_made_anew(
    cvfs: Command, server: FaultyServer, mnt: Path, engine: str
) -> None:
    """As the system does with that of a user who has logged out."""
    cvfs.ok("mount", "--engine", engine, "--refresh", "4", server.url, mnt)
    assert cvfs.status(mnt)["state"] == "ok"
    for _ in range(2):
        shutil.rmtree(cvfs.runtime)
        assert "there is no control socket" in cvfs.refused("refresh", mnt)
        assert "there is no control socket" in cvfs.refused("reload", mnt)
        assert cvfs.status(mnt)["state"] == "unknown"
        wait_until(lambda: cvfs.status(mnt)["state"] == "ok", timeout_s=20)
        assert b"revision" in cvfs.ok("refresh", mnt)
    if engine == "channel":
        cvfs.ok("reload", mnt)
        assert b"revision" in cvfs.ok("refresh", mnt)
    assert cvfs.log().count("was removed, and is made anew") == 2
    cvfs.ok("umount", mnt)
    wait_until(lambda: not cvfs.leftovers())


def test_control_socket_of_another_mount_stays(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path / "run")
    assert runtime.listen_anew(tmp_path, lambda: False) is None
    lock = runtime.try_lock()
    assert lock is not None
    assert runtime.listen_anew(tmp_path, lambda: True) is None  # a mount is under way
    os.close(lock)
    with runtime.listen(tmp_path):
        before = runtime.identity_of(tmp_path)
        assert runtime.listen_anew(tmp_path, lambda: True) is None
        assert runtime.identity_of(tmp_path) == before


def test_control_socket_with_nobody_behind_it_is_made_anew(tmp_path: Path) -> None:
    """The worker before was killed while it made it."""
    runtime = Runtime(tmp_path / "run")
    runtime.prepare()
    path = runtime.socket_of(tmp_path)
    made: list[socket.socket] = []

    async def main() -> None:
        control = Control(runtime, tmp_path, lambda: True, made.append)
        with runtime.listen(tmp_path) as former:
            path.unlink()
            runtime.listen(tmp_path).close()
            control.take(former.fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.serve, {"status": lambda _: {"pid": os.getpid()}})
            await control.look()
            assert await trio.to_thread.run_sync(ask, path, "status") == {"pid": os.getpid()}
            await control.look()
            nursery.cancel_scope.cancel()

    trio.run(main)
    (listener,) = made
    listener.close()


def test_mount_without_a_server_is_offline_and_recovers(cvfs: Command, server: FaultyServer, mnt: Path) -> None:
    cvfs.ok("mount", server.url, mnt)
    assert (mnt / "a/hello.txt").read_bytes() == b"hello\n"
    cvfs.ok("umount", mnt)
    server.misbehave(servers.status("503 Busy"))
    outcome = cvfs("mount", server.url, mnt)
    assert outcome.returncode == 0
    assert b"going on with revision 2, known before" in outcome.stderr
    assert (mnt / "a/hello.txt").read_bytes() == b"hello\n"
    assert cvfs.status(mnt)["state"] == "offline"
    assert cvfs("status", mnt).returncode == 1
    server.recover()
    wait_until(lambda: cvfs.status(mnt)["state"] == "ok", timeout_s=30)
    assert "answers again" in cvfs.log()
    cvfs.ok("umount", mnt)


def test_control_socket_survives_nonsense(
    cvfs: Command, server: FaultyServer, mnt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cvfs.ok("mount", server.url, mnt)
    (path,) = cvfs.runtime.glob("*.sock")
    monkeypatch.chdir(cvfs.runtime)  # a whole path may be too long for the address of a socket
    for nonsense in (
        b"",
        b"\n",
        b"\xff\n",
        b"[]\n",
        b'{"command": []}\n',
        b"[" * 50_000 + b"\n",
        b'{"command": "x"}\n',
    ):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path.name)
            connection.sendall(nonsense)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1000) == b'{"error": "unknown command"}\n'
    assert cvfs.status(mnt)["state"] == "ok"
    cvfs.ok("umount", mnt)


# Without root


@pytest.fixture
def as_nobody(cvfs: Command, tmp_path: Path) -> Iterator[list[str]]:
    """What to put before a command so that it runs as a plain user, who owns the directories of the test."""
    nobody = pwd.getpwnam("nobody")
    if not shutil.which("fusermount3") or not shutil.which("setpriv") or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("needs fusermount3 and setpriv")
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o001 == 0:
            if "pytest-of" not in str(path):
                pytest.skip(f"{path} is closed to others")
            path.chmod(path.stat().st_mode | 0o011)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    return ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--"]


def test_plain_user_mounts_through_the_helper(
    cvfs: Command, server: FaultyServer, mnt: Path, as_nobody: list[str]
) -> None:
    device_mode = os.stat("/dev/fuse").st_mode & 0o777
    if subprocess.run([*as_nobody, "test", "-r", os.fspath(cvfs.line()[0])], check=False).returncode:
        pytest.skip("the interpreter is closed to other users")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        line = [*as_nobody, *cvfs.line(*arguments)]
        return subprocess.run(line, env=cvfs.environment, capture_output=True, check=False, cwd="/")

    if device_mode & 0o006 != 0o006:
        outcome = run("mount", server.url, mnt)
        assert outcome.returncode == 1
        assert b"run as root, or let users open it" in outcome.stderr
        return
    assert run("mount", server.url, mnt).returncode == 0
    assert run("umount", mnt).returncode == 0


def test_allow_other_is_asked_of_fuse_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "fuse.conf"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not may_allow_other(conf)
    conf.write_text("# user_allow_other\nmount_max = 1000\n")
    assert not may_allow_other(conf)
    conf.write_text("user_allow_other\n")
    assert may_allow_other(conf)
