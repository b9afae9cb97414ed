"""All configured repositories in one mount: each opened when it is used, and none in the way of another.

One mount for each engine: three repositories that are served, one whose server refuses, one whose server hangs, some
below a domain that nobody has listed, and 200 that nobody uses.
"""

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import kernel_caches
from tests.e2e.host import Host, Server, Store, error_line, kill, run, wait_until
from tests.servers import FaultyServer

GOOD = ("a.example.org", "b.example.org", "c.example.org")
DOWN, HANG, LATE = "down.example.org", "hang.example.org", "late.example.org"
ANY = "any.open.org"
"""Is nowhere listed; its domain is allowed."""

UNUSED = tuple(f"r{number:03}.many.org" for number in range(200))
START_S = 8.0
"""What an opening may take."""


@dataclass
class Field:
    """A host where everything is mounted on `mount`, and the stores behind it by name."""

    host: Host
    mount: Path
    etc: Path
    stores: dict[str, Store]
    top: Path

    def publish(self, name: str, text: str) -> None:
        tree = self.top / f"tree-{name}"
        (tree / "d").mkdir(parents=True, exist_ok=True)
        (tree / "file").write_text(f"{name}: {text}")
        (tree / "d/same").write_text("the same everywhere")
        self.stores[name].publish(tree)

    def publish_unlisted(self, name: str) -> None:
        self.stores[name] = Store(self.top / "served" / name, name)
        self.publish(name, "one")
        (self.top / "keys" / f"{name}.root.json").symlink_to(self.stores[name].keys / "root.json")

    def configure(self, name: str, url: str) -> None:
        root = f'root = "{self.stores[name].keys}/root.json"' if name in self.stores else "trust_on_first_use = true"
        path = self.etc / "repositories.d" / f"{name}.toml"
        path.with_suffix(".new").write_text(f'url = "{url}"\n{root}\n')
        path.with_suffix(".new").rename(path)

    def status(self, name: str) -> dict[str, object]:
        return next(each for each in self.host.status(self.mount)["repositories"] if each["name"] == name)

    def read(self, name: str) -> str:
        return (self.mount / name / "file").read_text()


@pytest.fixture(scope="module")
def field(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    top = tmp_path_factory.mktemp("all")
    with contextlib.ExitStack() as until_done:
        field = _field(top, engine, until_done)
        field.host.cvfs("mount", "--all", field.mount, "--engine", engine)
        yield field
        field.host.umount(field.mount)


def _field(top: Path, engine: str, until_done: contextlib.ExitStack) -> Field:
    """Everything but the mount."""
    host = Host(top / "host", engine)
    host.top.mkdir()
    until_done.callback(host.close)
    etc, served = top / "etc", top / "served"
    (etc / "repositories.d").mkdir(parents=True)
    served.mkdir()
    del host.environment["CVFS_ROOT"]
    host.environment["CVFS_CONFIG"] = str(etc)
    field = Field(host, host.new_directory(), etc, {}, top)
    server = until_done.enter_context(FaultyServer(served))
    for name in GOOD:
        field.stores[name] = Store(served / name, name)
        field.publish(name, "one")
        field.configure(name, f"{server.url}/{name}")
    silent = until_done.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
    field.configure(HANG, f"http://127.0.0.1:{silent.getsockname()[1]}")
    for name in (DOWN, *UNUSED):
        field.configure(name, "http://127.0.0.1:1")
    (etc / "config.toml").write_text(
        f"start_deadline_s = {START_S}\nrefresh_s = 3600\n[domains]\n'open.org' = '{server.url}/{{name}}'\n"
    )
    (top / "keys").mkdir()
    host.environment["CVFS_ROOTS"] = str(top / "keys")
    field.publish_unlisted(ANY)
    return field


def test_listing_opens_nothing_and_waits_for_nobody(field: Field) -> None:
    wanted = sorted((*GOOD, DOWN, HANG, *UNUSED))
    assert sorted(os.listdir(field.mount)) == wanted
    lines = run("ls", "-l", field.mount).stdout.splitlines()
    assert len(lines) == len(wanted) + 1
    assert all(line.startswith(b"drwxr-xr-x") for line in lines[1:])
    assert field.mount.stat().st_nlink == 2 + len(wanted)
    repositories = field.host.status(field.mount)["repositories"]
    assert {each["state"] for each in repositories if each["name"] in UNUSED} == {"unused"}
    with pytest.raises(FileNotFoundError):
        (field.mount / "none.example.org").stat()
    with pytest.raises(OSError, match="Read-only file system"):
        (field.mount / "new").mkdir()


def test_two_hundred_names_cost_little_memory(field: Field) -> None:
    pid = field.host.status(field.mount)["worker_pid"]
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pss_kib = int(rollup.split("\nPss:")[1].split()[0])
    assert pss_kib < 80 << 10, rollup


def test_each_is_opened_when_it_is_used(field: Field) -> None:
    for name in GOOD[:2]:
        assert field.read(name) == f"{name}: one"
        assert (field.mount / name).stat().st_mtime > 0
        assert field.status(name)["revision"] == 1
    inodes = {(field.mount / name / "d/same").stat().st_ino for name in GOOD[:2]}
    assert len(inodes) == 2
    assert os.path.samestat((field.mount / GOOD[0] / "..").stat(), field.mount.stat())


def test_repository_that_hangs_costs_only_itself(field: Field) -> None:
    readers = [
        subprocess.Popen(["ls", field.mount / HANG], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(20)
    ]
    assert len(os.listdir(field.mount)) == len(GOOD) + 2 + len(UNUSED)
    run("ls", field.mount)
    assert field.read(GOOD[2]) == f"{GOOD[2]}: one"  # not opened before
    assert all(reader.poll() is None for reader in readers)
    assert [reader.wait(START_S * 4) for reader in readers] == [2] * 20
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(OSError, match=r"timed out|Input/output"):
            os.listdir(field.mount / HANG)
        assert time.monotonic() - started < START_S / 2
    assert field.status(HANG)["state"] == "failed"
    assert field.host.cvfs("status", check=False).returncode == 1


def test_repository_that_is_down_recovers_by_itself(field: Field, tmp_path: Path) -> None:
    field.stores[LATE] = Store(tmp_path / "late", LATE)
    field.publish(LATE, "one")
    with Server(field.stores[LATE].path, tmp_path) as server:
        port, url = server.port, server.url
    field.configure(LATE, url)
    field.host.cvfs("refresh", field.mount)
    with pytest.raises(OSError, match="Input/output error"):
        os.listdir(field.mount / LATE)
    with Server(field.stores[LATE].path, tmp_path, port):
        wait_until(lambda: _reads(field, LATE, "one"), timeout_s=30)
    (field.etc / f"repositories.d/{LATE}.toml").unlink()


def _reads(field: Field, name: str, text: str) -> bool:
    try:
        return field.read(name) == f"{name}: {text}"
    except OSError:
        return False


def test_one_is_refreshed_and_the_others_stay(field: Field) -> None:
    for name in GOOD[:2]:
        field.read(name)
        field.publish(name, "two, and longer")
    with open(field.mount / GOOD[0] / "file") as old:
        outcome = field.host.cvfs("refresh", field.mount / GOOD[0])
        assert outcome.stdout.decode() == f"{field.mount / GOOD[0]}: revision 2 of {GOOD[0]}\n"
        assert field.read(GOOD[0]) == f"{GOOD[0]}: two, and longer"
        assert old.read() == f"{GOOD[0]}: one"
    assert field.read(GOOD[1]) == f"{GOOD[1]}: one"
    field.host.cvfs("refresh", field.mount)
    assert field.read(GOOD[1]) == f"{GOOD[1]}: two, and longer"
    for path in (field.mount / "none.example.org", field.mount / GOOD[0] / "d"):
        assert "refresh" not in error_line(field.host.cvfs("refresh", path, check=False))


def test_configuration_may_change(field: Field) -> None:
    new = field.mount / "new.example.org"
    assert not new.exists()
    field.configure(new.name, "http://127.0.0.1:1")
    field.host.cvfs("refresh", field.mount)
    assert new.name in os.listdir(field.mount)
    wait_until(new.exists, timeout_s=30)  # the kernel may remember for some seconds that it is not there
    (field.etc / f"repositories.d/{new.name}.toml").unlink()
    field.host.cvfs("refresh", field.mount)
    assert new.name not in os.listdir(field.mount)


def test_unlisted_repository_of_a_domain(field: Field) -> None:
    assert field.read(ANY) == f"{ANY}: one"
    name = "new.open.org"
    with pytest.raises(FileNotFoundError):
        (field.mount / name).stat()
    field.publish_unlisted(name)
    wait_until(lambda: _reads(field, name, "one"), timeout_s=30)
    assert name not in os.listdir(field.mount)
    assert field.status(name)["revision"] == 1


def test_bind_mount_sees_what_is_opened_later(field: Field, tmp_path: Path) -> None:
    """In a mount namespace as a container has it, made before any of this happens."""
    script = 'mount --rbind "$0" "$1" && echo ready && while read path; do cat "$1/$path" && echo; done'
    inside = tmp_path / "inside"
    inside.mkdir()
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, field.mount, inside]
    name = "later.example.org"
    field.stores[name] = Store(field.top / "served" / name, name)
    field.publish(name, "one")
    field.read(GOOD[0])
    url = str(field.status(GOOD[0])["url"]).replace(GOOD[0], name)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as container:
        assert container.stdin is not None
        assert container.stdout is not None

        def cat(path: str) -> str:
            print(path, file=container.stdin)
            return container.stdout.readline().strip()  # type: ignore[union-attr]

        assert container.stdout.readline() == "ready\n"
        field.configure(name, url)
        field.host.cvfs("refresh", field.mount)
        wait_until((field.mount / name).exists, timeout_s=30)
        assert cat(f"{name}/file") == f"{name}: one"
        field.publish(name, "two")
        field.host.cvfs("refresh", field.mount / name)
        assert cat(f"{name}/file") == f"{name}: two"
        if field.host.engine == "channel":
            kill(field.host.status(field.mount)["worker_pid"])
            assert cat(f"{name}/d/same") == "the same everywhere"
        container.stdin.close()
    (field.etc / f"repositories.d/{name}.toml").unlink()


def test_df_shows_each_repository(field: Field) -> None:
    field.read(GOOD[0])
    if field.host.engine == "channel":  # libfuse does not say what is asked about
        assert os.statvfs(field.mount / GOOD[0]).f_files == 4
    assert os.statvfs(field.mount).f_files >= 4
    assert run("df", "--output=source", field.mount).stdout.split()[-1] == b"cvfs"


def test_workers_that_are_killed_go_unnoticed(field: Field) -> None:
    """Also in what the dead one had opened and the next one has not: open files, directories, working directories."""
    if field.host.engine == "pyfuse3":
        pytest.skip("it has no supervisor")
    for name in (*GOOD, ANY):
        field.read(name)
    field.publish(GOOD[0], "newer")
    field.host.cvfs("refresh", field.mount / GOOD[0])
    roots = {name: (field.mount / name).stat() for name in (*GOOD, HANG)}
    text = field.read(GOOD[0])
    assert text.endswith("newer")
    with open(field.mount / GOOD[1] / "file") as file:
        inside = os.open(field.mount / GOOD[1] / "d", os.O_RDONLY)
        with _in_use(field) as problems:
            for _ in range(4):
                with contextlib.suppress(ProcessLookupError):
                    kill(field.host.status(field.mount)["worker_pid"])
                kernel_caches.drop()
                assert os.listdir(inside) == ["same"]
                assert os.pread(file.fileno(), 1, 0) == b"b"
                assert field.read(GOOD[0]) == text
        os.close(inside)
    assert problems == []
    after = {name: (field.mount / name).stat() for name in roots}
    for name, root in roots.items():
        assert (after[name].st_ino, after[name].st_mtime) == (root.st_ino, root.st_mtime)
    assert field.status(ANY)["revision"] == 1  # slot 0 keeps new what any worker has opened
    assert field.host.status(field.mount)["restarts"] >= 4


@contextlib.contextmanager
def _in_use(field: Field) -> Iterator[list[str]]:
    """Threads that read all the time; what they meet with is yielded."""
    stop = threading.Event()
    problems: list[str] = []

    def use() -> None:
        while not stop.is_set():
            for name in (*GOOD, ANY):
                try:
                    if (field.mount / name / "d/same").read_text() != "the same everywhere":
                        problems.append(name)
                except OSError as error:
                    problems.append(f"{name}: {error}")

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield problems
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def test_reload_goes_unnoticed(field: Field) -> None:
    if field.host.engine == "pyfuse3":
        pytest.skip("it has no supervisor")
    with _in_use(field) as problems:
        field.host.cvfs("reload", field.mount)
    assert problems == []


def test_several_workers_show_the_same(engine: str, tmp_path: Path) -> None:
    if engine == "pyfuse3":
        pytest.skip("it has one process")
    with contextlib.ExitStack() as until_done:
        field = _field(tmp_path, engine, until_done)
        field.host.cvfs("mount", "--all", field.mount, "--workers", "2")
        for number, name in enumerate(GOOD):
            texts = {field.read(name)}
            for _ in range(6):
                kernel_caches.drop()
                texts.add(run("cat", field.mount / name / "file").stdout.decode())
            assert texts == {f"{name}: one"}
            wait_until(lambda: "revision" in field.status(name), timeout_s=20)  # noqa: B023
            field.publish(name, f"two {number}")
            field.host.cvfs("refresh", field.mount / name)
            for _ in range(6):
                kernel_caches.drop()
                assert run("cat", field.mount / name / "file").stdout.decode() == f"{name}: two {number}"
        field.host.umount(field.mount)


def test_what_cannot_be_is_said_in_a_line(auto_host: Host) -> None:
    directory = auto_host.new_directory()
    assert "a revision is one of a repository" in auto_host.refused("--all", directory, "--revision", "1")
