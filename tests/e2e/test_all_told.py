"""A mount of all repositories: what is said of those that cannot be used, and how it follows a configuration."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cvfs.mount.runtime import Runtime, ask
from tests import kernel_caches, servers
from tests.e2e.host import Host, error_line, wait_until
from tests.servers import FaultyServer
from tests.small_store import SmallStore

GOOD, OTHER, DOWN, UNUSED = "a.example.org", "b.example.org", "down.example.org", "unused.example.org"


class Few:
    """A host with a few configured repositories, all of them mounted on `mount`."""

    def __init__(self, host: Host, top: Path) -> None:
        self.host, self.top = host, top
        self.files = top / "etc" / "repositories.d"
        self.files.mkdir(parents=True)
        del host.environment["CVFS_ROOT"]
        host.environment |= {"CVFS_CONFIG": str(top / "etc"), "CVFS_START_DEADLINE_S": "3", "COLUMNS": "1000"}
        self.mount = host.new_directory()

    def add(self, name: str, content: bytes, place: str = "") -> SmallStore:
        """Configure a repository with one file."""
        top = self.top / (place or name)
        top.mkdir()
        store = SmallStore(top / "store", name)
        store.publish({b"file": content})
        self.configure(name, store.path.as_uri(), store.root)
        return store

    def configure(self, name: str, url: str, root: Path | None = None) -> None:
        trust = f'root = "{root}"' if root else "trust_on_first_use = true"
        (self.files / f"{name}.toml").write_text(f'url = "{url}"\n{trust}\n')

    def read(self, name: str) -> bytes:
        return (self.mount / name / "file").read_bytes()

    def lines(self, *arguments: str | Path) -> list[str]:
        return self.host.cvfs(*arguments, check=False).stdout.decode().splitlines()

    def doctor(self, *arguments: str | Path) -> dict[str, dict[str, Any]]:
        outcome = self.host.cvfs("doctor", "--json", *arguments, check=False)
        return {each["test"]: each for each in json.loads(outcome.stdout)["findings"]}

    def own(self, findings: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Without those of mounts of other tests, which run at the same time."""
        return [each for test, each in findings.items() if not test.startswith("mount ") or str(self.top) in test]


@pytest.fixture
def few(auto_host: Host, tmp_path: Path) -> Iterator[Few]:
    few = Few(auto_host, tmp_path)
    few.add(GOOD, b"one")
    few.configure(DOWN, "http://127.0.0.1:1")
    few.configure(UNUSED, "http://127.0.0.1:1")
    auto_host.cvfs("mount", "--all", few.mount)
    yield few
    auto_host.umount(few.mount)


def test_why_one_has_failed_can_be_read(few: Few) -> None:
    assert few.read(GOOD) == b"one"
    with pytest.raises(OSError, match="Input/output"):
        os.listdir(few.mount / DOWN)
    found = few.doctor()[f"mount {few.mount}"]
    assert (found["state"], found["says"][: len(f"failed: {DOWN}: ")]) == ("failed", f"failed: {DOWN}: ")
    assert "refused" in found["says"]
    (told,) = [line for line in few.lines("status") if line.startswith(f"{few.mount / DOWN}: failed: ")]
    assert "refused" in told
    whole = few.lines("status", few.mount)
    assert max(map(len, whole)) < 400
    assert "{" not in "".join(line for line in whole if "repositories" in line)
    assert [line.split()[-3:] for line in whole if line.startswith("repositories:")] == [["2", "in", "use"]]
    assert any(line.startswith(f"{few.mount / GOOD} ") and " ok " in line for line in whole)
    assert told in whole


def test_status_of_one_by_its_directory(few: Few) -> None:
    few.read(GOOD)
    outcome = few.host.cvfs("status", few.mount / GOOD, "--json")
    (status,) = json.loads(outcome.stdout)["mounts"]
    assert (status["mountpoint"], status["state"], status["revision"]) == (str(few.mount / GOOD), "ok", 1)
    lines = few.lines("status", few.mount / GOOD)
    assert f"{'repository:':<24} {GOOD}" in lines
    assert [line for line in lines if line.startswith("network.mirrors:") and "state ok" in line]
    assert few.host.cvfs("status", few.mount / UNUSED).returncode == 0
    with pytest.raises(OSError, match="Input/output"):
        os.listdir(few.mount / DOWN)
    assert few.host.cvfs("status", few.mount / DOWN, check=False).returncode == 1
    for wrong in (few.mount / "none.example.org", few.mount / GOOD / "file"):
        assert "no repository is mounted on" in error_line(few.host.cvfs("status", wrong, check=False))


def test_doctor_takes_a_mount_of_all(few: Few) -> None:
    assert not [each for each in few.own(few.doctor(few.mount)) if each["state"] == "failed"]
    few.read(GOOD)
    with pytest.raises(OSError, match="Input/output"):
        os.listdir(few.mount / DOWN)
    found = few.doctor(few.mount)
    assert found[f"{GOOD}: repository"]["state"] == "ok"
    assert found[f"{DOWN}: server 127.0.0.1:1"]["state"] == "failed"
    assert not [test for test in found if UNUSED in test]
    assert few.doctor(few.mount / GOOD)["repository"]["state"] == "ok"
    assert few.doctor("nothing")["configuration"]["state"] == "failed"


def test_doctor_takes_the_directory_of_one_that_is_not_open(few: Few) -> None:
    with pytest.raises(OSError, match="Input/output"):
        os.listdir(few.mount / DOWN)
    for name in (DOWN, UNUSED):
        assert few.doctor(few.mount / name)["server 127.0.0.1:1"]["state"] == "failed"


def test_a_configuration_that_cannot_be_read_ends_no_worker(few: Few) -> None:
    few.read(GOOD)
    worker = few.host.status(few.mount)["worker_pid"]
    few.files.parent.rename(few.top / "away")
    few.host.environment |= {"CVFS_CONFIG": str(few.top / "away")}  # of commands; the mount has its own
    asked = Runtime(Path(few.host.environment["CVFS_RUNTIME_DIR"])).socket_of(few.mount)
    assert ask(asked, "refresh", repository=None)["worker_pid"] == worker
    wait_until(lambda: "there is no directory" in few.host.status(few.mount)["refresh_problem"])
    assert few.read(GOOD) == b"one"
    assert (few.host.status(few.mount)["worker_pid"], few.host.status(few.mount)["restarts"]) == (worker, 0)


def test_a_file_that_is_broken_is_named_also_while_nobody_uses_it(few: Few) -> None:
    broken = few.files / "broken.example.org.toml"
    broken.write_text('url = "http://unterminated\n')
    outcome = few.host.cvfs("doctor", "--json", check=False)
    (found,) = [each for each in json.loads(outcome.stdout)["findings"] if each["test"] == "configuration"]
    assert (outcome.returncode, found["state"], f"{broken}:1: " in found["says"]) == (1, "failed", True)
    few.read(GOOD)
    assert f"{broken}:1: " in error_line(few.host.cvfs("refresh", few.mount, check=False))
    listed = few.host.cvfs("config", "list", check=False)
    assert listed.returncode == 1
    assert [line.split()[0] for line in listed.stdout.decode().splitlines()] == [GOOD, DOWN, UNUSED]
    assert f"{broken}:1: " in error_line(listed)
    told = json.loads(few.host.cvfs("config", "list", "--json", check=False).stdout)
    assert [each["name"] for each in told["repositories"]] == [GOOD, DOWN, UNUSED]
    assert f"{broken}:1: " in told["problems"][0]
    broken.unlink()
    few.host.cvfs("refresh", few.mount)
    assert few.doctor()["configuration"]["state"] == "ok"


@pytest.fixture(params=["channel", "pyfuse3", "two workers"])
def changing(request: pytest.FixtureRequest, auto_host: Host, tmp_path: Path) -> Iterator[Few]:
    """As `few`, for each engine."""
    few = Few(auto_host, tmp_path)
    few.add(GOOD, b"one")
    more = ("channel", "--workers", "2") if request.param == "two workers" else (request.param,)
    auto_host.cvfs("mount", "--all", few.mount, "--engine", *more)
    yield few
    auto_host.umount(few.mount)


def test_what_was_configured_wrongly_is_tried_anew(changing: Few) -> None:
    store, workers = changing.add(OTHER, b"two"), changing.host.status(changing.mount).get("workers", 1)
    with FaultyServer(changing.top) as server:
        server.misbehave(servers.status("404 Not Found"))
        changing.configure(OTHER, server.url)
        changing.host.cvfs("refresh", changing.mount)
        # Each asks once whenever it tries, and after the second time it would leave it alone for 4 s.
        wait_until(lambda: _has_failed(changing, OTHER) and len(server.seen) >= 2 * workers, 30)
    changing.configure(OTHER, store.path.as_uri(), store.root)
    changing.host.cvfs("refresh", changing.mount)
    assert changing.read(OTHER) == b"two"


def _has_failed(few: Few, name: str) -> bool:
    try:
        os.listdir(few.mount / name)
    except OSError as error:
        return error.errno == errno.EIO
    return False


@pytest.mark.usefixtures("kept_kernel_caches")
def test_what_was_removed_is_gone_with_a_refresh(changing: Few) -> None:
    for _ in range(2):  # what is looked up when it is open, the kernel believes for some seconds
        assert changing.read(GOOD) == b"one"
    (changing.files / f"{GOOD}.toml").unlink()
    changing.host.cvfs("refresh", changing.mount)
    for _ in range(4):
        with pytest.raises(FileNotFoundError):
            os.listdir(changing.mount / GOOD)


def test_what_was_removed_and_added_is_opened_anew(changing: Few) -> None:
    assert changing.read(GOOD) == b"one"
    mine = changing.files / f"{GOOD}.toml"
    with open(changing.mount / GOOD / "file", "rb") as file:
        mine.unlink()
        changing.host.cvfs("refresh", changing.mount)
        store = changing.add(GOOD, b"another", "elsewhere")
        changing.host.cvfs("refresh", changing.mount)
        for _ in range(4):
            kernel_caches.drop()
            assert changing.read(GOOD) == b"another"
        assert file.read() == b"one"
    status = changing.host.status(changing.mount / GOOD)
    assert (status["url"], status["state"]) == (store.path.as_uri(), "ok")
    store.publish({b"file": b"newer"})
    changing.host.cvfs("refresh", changing.mount / GOOD)
    assert changing.read(GOOD) == b"newer"
    if changing.host.status(changing.mount)["engine"] == "channel":
        changing.host.cvfs("reload", changing.mount)
        kernel_caches.drop()
        assert changing.read(GOOD) == b"newer"
