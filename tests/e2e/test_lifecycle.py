"""Mounts come and go: what is refused, how it ends, what is left behind (nothing), and the commands without a mount."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvfs.errors import MountError
from cvfs.mount.runtime import Runtime, ask
from tests.e2e.host import (
    PYTHON,
    Host,
    Server,
    Store,
    error_line,
    kill,
    mounts_below,
    processes_of,
    run,
    wait_until,
)
from tests.e2e.zoo import NAMES, SIZES, content, look
from tests.servers import FaultyServer, html, mute_port, refusing_port


@pytest.fixture
def filled(store: Store, tree: Path) -> Store:
    """A store with one file in it."""
    (tree / "file").write_text("content\n")
    store.publish(tree)
    return store


# What is refused: one line, not zero, nothing left, within seconds


def test_no_such_repository(auto_host: Host, tmp_path: Path) -> None:
    directory = auto_host.new_directory()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for wrong in ("/no/such/place", tmp_path / "file", tmp_path / "empty", "file:///no/such/place"):
        assert "repository" in auto_host.refused(wrong, directory)


@pytest.mark.parametrize("url", ["ftp://example.org/x", "http://[", "http://x:99999"])
def test_a_wrong_url(auto_host: Host, url: str) -> None:
    auto_host.refused(url, auto_host.new_directory())


def test_a_server_without_the_repository(auto_host: Host, tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    with FaultyServer(tmp_path / "www") as server:
        assert "no repository" in auto_host.refused(server.url, auto_host.new_directory())
        server.misbehave(html)
        assert "HTML" in auto_host.refused(server.url, auto_host.new_directory())


def test_a_server_that_is_down_or_silent(auto_host: Host) -> None:
    for a_port in (refusing_port, mute_port):
        with a_port() as port:
            assert str(port) in auto_host.refused(f"http://127.0.0.1:{port}", auto_host.new_directory())


def test_a_host_that_does_not_exist(auto_host: Host) -> None:
    assert "no-such-host.invalid" in auto_host.refused("http://no-such-host.invalid", auto_host.new_directory())


def test_a_mount_point_that_is_none(auto_host: Host, filled: Store) -> None:
    file = auto_host.top / "file"
    file.touch()
    full = auto_host.new_directory()
    (full / "something").touch()
    for wrong in (file, full, auto_host.top / "absent", auto_host.top / "absent/deeper"):
        assert wrong.name in auto_host.refused(filled.path, wrong)
    dangling = auto_host.top / "dangling"
    dangling.symlink_to("nowhere")
    auto_host.refused(filled.path, dangling)


def test_a_directory_that_is_not_empty_if_asked_for(auto_host: Host, filled: Store) -> None:
    full = auto_host.new_directory()
    (full / "something").touch()
    auto_host.mount(filled.path, "-o", "nonempty", on=full)
    assert os.listdir(full) == ["file"]
    auto_host.umount(full)
    assert os.listdir(full) == ["something"]


def test_a_mount_point_in_use(auto_host: Host, filled: Store) -> None:
    mount = auto_host.mount(filled.path)
    assert "mount" in auto_host.refused(filled.path, mount)
    assert (mount / "file").read_text() == "content\n"


def test_options_that_mean_nothing(auto_host: Host, filled: Store) -> None:
    directory = auto_host.new_directory()
    for option in ("rw", "no-such-option", "suid,colour=blue"):
        auto_host.refused(filled.path, directory, "-o", option)


def test_a_cache_that_cannot_be_one(auto_host: Host, filled: Store) -> None:
    directory, top = auto_host.new_directory(), auto_host.top
    (top / "file").touch()
    foreign, open_to_all, other_layout = top / "foreign", top / "open", top / "layout"
    for made in (foreign, open_to_all, other_layout):
        made.mkdir()
    os.chown(foreign, 65534, 65534)
    open_to_all.chmod(0o777)
    other_layout.chmod(0o700)
    (other_layout / "CVFS-CACHE").write_text("99\n")
    for wrong in (top / "file", foreign, open_to_all, other_layout):
        assert "cache" in auto_host.refused(filled.path, directory, "--cache", wrong)


def test_an_engine_that_is_not_there(auto_host: Host, filled: Store) -> None:
    outcome = auto_host.cvfs("mount", filled.path, auto_host.new_directory(), "--engine", "warp", check=False)
    assert outcome.returncode == 2
    assert b"Traceback" not in outcome.stderr


def test_without_dev_fuse(host: Host, filled: Store) -> None:
    """In a namespace of its own, where /dev has nothing."""
    directory = host.new_directory()
    hide = 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"'
    command = [*PYTHON, "-m", "cvfs", "mount", filled.path, directory, "--engine", host.engine]
    outcome = run("unshare", "-m", "sh", "-c", hide, "sh", *command, env=host.environment, check=False)
    assert "/dev/fuse" in error_line(outcome)
    assert processes_of(host.top) == {}


def test_what_a_spoilt_index_does(auto_host: Host, filled: Store) -> None:
    """The inode index is only a cache: whatever is in its place, the mount works."""
    mount = auto_host.mount(filled.path)
    auto_host.umount(mount)
    for path in sorted((auto_host.cache / "index").rglob("*")):
        if path.is_file():
            path.write_bytes(b"garbage" * 1000)
    auto_host.mount(filled.path, on=mount)
    assert (mount / "file").read_text() == "content\n"
    auto_host.umount(mount)
    shutil.rmtree(auto_host.cache / "index")
    (auto_host.cache / "index").write_text("a file")
    auto_host.mount(filled.path, on=mount)
    assert (mount / "file").read_text() == "content\n"


# Living with a mount


def test_two_mounts_of_one_repository(host: Host, filled: Store) -> None:
    one, other = host.mount(filled.path), host.mount(filled.path)
    assert (one / "file").read_text() == (other / "file").read_text() == "content\n"
    assert os.stat(one / "file").st_ino == os.stat(other / "file").st_ino
    host.umount(one)
    assert (other / "file").read_text() == "content\n"
    assert host.status(other)["state"] == "ok"


def test_mounting_at_once(host: Host, filled: Store) -> None:
    directories = [host.new_directory() for _ in range(4)]
    command = [*PYTHON, "-m", "cvfs", "mount", filled.path]
    mounting = [subprocess.Popen([*command, directory], env=host.environment) for directory in directories]
    assert [process.wait(60) for process in mounting] == [0] * 4
    for directory in directories:
        assert (directory / "file").read_text() == "content\n"
        host.umount(directory)


def test_status(host: Host, filled: Store, tmp_path: Path) -> None:
    with Server(filled.path, tmp_path) as server:
        mount = host.mount(server.url)
        assert host.cvfs("status", mount).returncode == 0
        status = host.status(mount)
        assert (status["state"], status["revision"], status["mountpoint"]) == ("ok", 1, str(mount))
        assert status["engine"] == host.engine
        assert str(mount).encode() in host.cvfs("status", check=False).stdout
    error_line(host.cvfs("status", tmp_path, check=False))
    host.umount(mount)
    error_line(host.cvfs("status", mount, check=False))


def test_umount_leaves_nothing(host: Host, filled: Store) -> None:
    mount = host.mount(filled.path)
    assert len(processes_of(host.top)) >= 1
    host.umount(mount)
    assert (mounts_below(host.top), processes_of(host.top)) == ([], {})
    assert list((host.top / "run").iterdir()) == []
    assert os.listdir(mount) == []


def test_umount_of_what_is_no_mount(auto_host: Host, filled: Store) -> None:
    for wrong in (auto_host.top, auto_host.top / "absent", Path("/proc")):
        error_line(auto_host.cvfs("umount", wrong, check=False))
    assert os.path.ismount("/proc")


def test_a_reload_of_one_process_says_why_not(auto_host: Host, filled: Store) -> None:
    auto_host.engine = "pyfuse3"
    mount = auto_host.mount(filled.path)
    line = error_line(auto_host.cvfs("reload", mount, check=False))
    assert line.endswith("the engine pyfuse3 is one process; unmount it and mount it again")
    auto_host.umount(mount)


def test_a_question_that_makes_no_sense_harms_nobody(auto_host: Host, filled: Store) -> None:
    mount = auto_host.mount(filled.path)
    worker, socket = auto_host.status(mount)["worker_pid"], Runtime(auto_host.top / "run").socket_of(mount)
    for wrong in ([], {}, 3):
        with pytest.raises(MountError):
            ask(socket, "refresh", repository=wrong)
    assert auto_host.status(mount)["worker_pid"] == worker
    auto_host.umount(mount)


def test_umount_of_what_is_in_use(host: Host, filled: Store) -> None:
    mount = host.mount(filled.path)
    with open(mount / "file"):
        line = error_line(host.cvfs("umount", mount, check=False))
        assert "--lazy" in line
        assert str(os.getpid()) in line
    assert (mount / "file").read_text() == "content\n"
    host.umount(mount)


def test_lazy_umount(host: Host, filled: Store) -> None:
    """Out of sight at once; who has a file open reads on; then the daemon ends."""
    mount = host.mount(filled.path)
    with open(mount / "file") as file:
        host.umount(mount, "--lazy")
        assert os.listdir(mount) == []
        assert processes_of(host.top) != {}
        assert file.read() == "content\n"
    wait_until(lambda: processes_of(host.top) == {})


def test_plain_umount_works_too(host: Host, filled: Store) -> None:
    mount = host.mount(filled.path)
    run("umount", mount)
    wait_until(lambda: processes_of(host.top) == {})
    assert list((host.top / "run").iterdir()) == []


def test_after_a_kill_of_everything(host: Host, filled: Store) -> None:
    """kill -9 of all that serves a mount: calls fail, none hangs; mounting over it and unmounting it both work."""
    mount = host.mount(filled.path)
    _kill_all(host)
    with pytest.raises(OSError, match=r"Transport endpoint is not connected|Software caused connection abort"):
        os.listdir(mount)
    assert host.status(mount)["state"] == "dead"
    assert host.cvfs("status", mount, check=False).returncode == 1
    host.mount(filled.path, on=mount)
    assert (mount / "file").read_text() == "content\n"
    _kill_all(host)
    host.umount(mount)
    assert (mounts_below(host.top), list((host.top / "run").glob("*.sock"))) == ([], [])


def _kill_all(host: Host) -> None:
    """At one blow: stopped first, so that none can do anything about the death of another."""
    pids = list(processes_of(host.top))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        kill(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_foreground_ends_cleanly(host: Host, filled: Store, number: signal.Signals) -> None:
    mount = host.new_directory()
    command = [*PYTHON, "-m", "cvfs", "mount", "-f", "--engine", host.engine, filled.path, mount]
    process = subprocess.Popen(command, env=host.environment, stderr=subprocess.PIPE)
    wait_until(lambda: mounts_below(host.top) != [] and (mount / "file").exists())
    process.send_signal(number)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 0, errors
    assert b"Traceback" not in errors
    assert mounts_below(host.top) == []


def test_sigterm_to_the_daemon_unmounts(host: Host, filled: Store) -> None:
    mount = host.mount(filled.path)
    os.kill(host.status(mount)["pid"], signal.SIGTERM)
    wait_until(lambda: (mounts_below(host.top), processes_of(host.top)) == ([], {}))


@pytest.fixture
def users_host(engine: str) -> Iterator[Host]:
    """A host of the user nobody, who may not enter what pytest makes for root, but may read the code."""
    top = Path(tempfile.mkdtemp(prefix="cvfs-test-"))
    os.chown(top, 65534, 65534)
    host = Host(top, engine)
    yield host
    host.close()
    shutil.rmtree(top)


def _as_nobody(host: Host, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    ids = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    may_read = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    return run(*ids, *may_read, *PYTHON, "-m", "cvfs", *arguments, env=host.environment | {"HOME": "/"}, check=False)


@contextlib.contextmanager
def _mode_of_device(mode: int) -> Iterator[None]:
    """Whether every user may open /dev/fuse, as most distributions have it, or only root."""
    device = Path("/dev/fuse")
    before = device.stat().st_mode & 0o7777
    device.chmod(mode)
    try:
        yield
    finally:
        device.chmod(before)


def test_as_a_plain_user(users_host: Host, zoo_server: Server) -> None:
    directory = users_host.new_directory()
    os.chown(directory, 65534, 65534)
    mounting = ("mount", zoo_server.url, directory, "--engine", users_host.engine)
    with _mode_of_device(0o600):
        assert "/dev/fuse" in error_line(_as_nobody(users_host, *mounting))
        assert (mounts_below(users_host.top), processes_of(users_host.top)) == ([], {})
    with _mode_of_device(0o666):
        mounted = _as_nobody(users_host, *mounting)
        assert mounted.returncode == 0, mounted.stderr
    # Not even root may look into it, unless allow_other.
    as_user = {"user": 65534, "group": 65534, "extra_groups": []}
    assert run("cat", f"{directory}/sizes/4095", **as_user).stdout == content(4095)
    with pytest.raises(PermissionError):
        os.listdir(directory)
    assert _as_nobody(users_host, "status", directory).returncode == 0
    assert _as_nobody(users_host, "umount", directory).returncode == 0
    wait_until(lambda: (mounts_below(users_host.top), processes_of(users_host.top)) == ([], {}))


def test_the_cache_of_another_user(users_host: Host, filled: Store, auto_host: Host) -> None:
    mount = auto_host.mount(filled.path)
    outcome = _as_nobody(users_host, "ls", "--cache", auto_host.cache, filled.path)
    assert "belongs to uid 0" in error_line(outcome)
    auto_host.umount(mount)


def test_a_plain_user_needs_no_mount(users_host: Host, zoo_server: Server) -> None:
    assert _as_nobody(users_host, "cat", zoo_server.url, "sizes/4097").stdout == content(4097)


# Without a mount


def test_ls_shows_what_the_mount_shows(zoo_server: Server, mnt: Path, zoo_host: Host) -> None:
    for path in ("", "names", "empty/directory"):
        listed = zoo_host.cvfs("ls", "-0", zoo_server.url, path).stdout.split(b"\0")[:-1]
        assert listed == sorted(os.listdir(os.fsencode(mnt / path)))
    everything = zoo_host.cvfs("ls", "-R", "-0", zoo_server.url).stdout.split(b"\0")[:-1]
    assert set(everything) == look(mnt).facts.keys() - {b""}


def test_names_with_newlines_in_ls(zoo_server: Server, zoo_host: Host) -> None:
    """As they are where a program reads them, escaped on a terminal."""
    assert b"new\nline\n" in zoo_host.cvfs("ls", zoo_server.url, "names").stdout
    mine, theirs = pty.openpty()
    subprocess.run(
        [*PYTHON, "-m", "cvfs", "ls", zoo_server.url, "names"], stdout=theirs, env=zoo_host.environment, check=True
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):
        while data := os.read(mine, 65536):
            shown += data
    os.close(mine)
    lines = shown.replace(b"\r\n", b"\n").split(b"\n")
    assert rb"new\nline" in lines
    assert rb"con\x1b[1m" in lines
    assert b"\x1b" not in shown
    assert len(lines) == len(NAMES) + 1


def test_cat_gives_the_bytes(zoo_server: Server, zoo_host: Host) -> None:
    names = [f"sizes/{size}" for size in SIZES]
    assert zoo_host.cvfs("cat", zoo_server.url, *names).stdout == b"".join(map(content, SIZES))
    assert zoo_host.cvfs("cat", zoo_server.url, "links/relative").stdout == content(1)
    assert zoo_host.cvfs("cat", zoo_server.url, b"names/\xff\xff"[:7]).stdout == b"content of \xff"


def test_cp_copies_what_the_mount_shows(zoo_server: Server, mnt: Path, zoo_host: Host, tmp_path: Path) -> None:
    for name in ("hard", "links", "xattrs", "modes", "names"):
        zoo_host.cvfs("cp", "-r", "-q", zoo_server.url, name, tmp_path)
    wanted, got = look(mnt), look(tmp_path)
    del got.facts[b""]
    assert len(got.facts) > 390
    assert {path: (facts, wanted.facts[path]) for path, facts in got.facts.items() if facts != wanted.facts[path]} == {}
    assert got.links == wanted.links


def test_what_is_not_there(zoo_server: Server, zoo_host: Host, tmp_path: Path) -> None:
    for arguments in (
        ("ls", zoo_server.url, "absent"),
        ("cat", zoo_server.url, "empty"),
        ("cat", zoo_server.url, "links/self"),
        ("cat", zoo_server.url, "special/fifo"),
        ("cat", zoo_server.url, "sizes/1/below"),
        ("cp", zoo_server.url, "empty", tmp_path),
        ("cp", zoo_server.url, "sizes/1", tmp_path / "no/such/place"),
        ("ls", "--revision", "99", zoo_server.url),
    ):
        outcome = zoo_host.cvfs(*arguments, check=False)
        assert error_line(outcome)
        assert outcome.stdout == b""
    assert os.listdir(tmp_path) == []


def test_older_revisions(host: Host, store: Store, tree: Path) -> None:
    for text in ("one", "second"):
        (tree / "file").write_text(text)
        store.publish(tree)
    assert host.cvfs("cat", "--revision", "1", store.path, "file").stdout == b"one"
    mount = host.mount(store.path, "--revision", "1")
    assert (mount / "file").read_text() == "one"


def test_a_reader_that_leaves(zoo_server: Server, zoo_host: Host) -> None:
    shell = f"{' '.join(PYTHON)} -m cvfs ls -R {zoo_server.url} | head -n 1"
    outcome = run("bash", "-c", shell, env=zoo_host.environment)
    assert outcome.stderr == b""
