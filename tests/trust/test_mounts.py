"""Trust on real mounts: what is refused, what goes on, and what is said of it."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from cvfs.errors import ExpiredError
from cvfs.mount.freshness import StrictFileSystem
from cvfs.trust.names import TIMESTAMP
from tests import kernel_caches
from tests.command import Command, wait_until
from tests.servers import FaultyServer
from tests.small_store import SmallStore


@pytest.fixture
def store(tmp_path: Path) -> SmallStore:
    (tmp_path / "store").mkdir()
    store = SmallStore(tmp_path / "store")
    store.publish({b"file": b"one"})
    store.root = store.root.rename(tmp_path / "elsewhere.json")  # where the command of the tests does not find it
    return store


@pytest.fixture
def cvfs(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    command.clean_up()


def expire(store: SmallStore, seconds: float) -> None:
    """Sign the timestamp so that it expires in `seconds`, to the second."""
    from publisher.signing import metadata

    now_s = int(time.time() + seconds) - 86_400
    data = metadata.renew_timestamp((store.path / TIMESTAMP).read_bytes(), 1, now_s, store.keys["timestamp"])
    (store.path / "new").write_bytes(data)
    (store.path / "new").rename(store.path / TIMESTAMP)


def test_without_a_root_nothing_is_mounted(cvfs: Command, store: SmallStore, mnt: Path) -> None:
    assert "no root of trust for" in cvfs.refused("mount", store.path, mnt)
    assert not cvfs.mounts()
    assert not cvfs.processes()


def test_the_wrong_root_is_refused(cvfs: Command, store: SmallStore, mnt: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = SmallStore(tmp_path / "other" / "store")
    assert "cannot trust what" in cvfs.refused("mount", "--root", other.root, store.path, mnt)
    assert "has no root with the SHA-256" in cvfs.refused("mount", "--root-sha256", "0" * 64, store.path, mnt)
    assert not cvfs.mounts()


def test_a_root_once_named_stays_known_and_is_shown(cvfs: Command, store: SmallStore, mnt: Path) -> None:
    cvfs.ok("mount", "--root", store.root, store.path, mnt)
    assert cvfs.status(mnt)["trust"]["root"] == f"file {store.root}"
    cvfs.ok("umount", mnt)
    store.root.unlink()
    cvfs.ok("mount", store.path, mnt)
    assert (mnt / "file").read_bytes() == b"one"
    cvfs.ok("umount", mnt)


def test_trust_on_first_use_is_shown(cvfs: Command, store: SmallStore, mnt: Path) -> None:
    cvfs.ok("mount", "--trust-on-first-use", store.path, mnt)
    assert cvfs.status(mnt)["trust"]["root"] == "on first use"
    cvfs.ok("umount", mnt)


def test_a_directory_of_roots(cvfs: Command, store: SmallStore, tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots" / f"{store.name}.root.json").write_bytes(store.root.read_bytes())
    named = store.path.rename(tmp_path / store.name)
    assert cvfs.ok("cat", named, "file", extra={"CVFS_ROOTS": str(tmp_path / "roots")}) == b"one"


def test_expired_goes_on_and_says_so(cvfs: Command, store: SmallStore, mnt: Path) -> None:
    cvfs.ok("mount", "--root", store.root, "--refresh", "0.3", store.path, mnt)
    expire(store, 3)
    wait_until(lambda: cvfs.status(mnt)["state"] == "expired")
    assert (mnt / "file").read_bytes() == b"one"
    assert cvfs("status", mnt).returncode == 1
    assert cvfs.status(mnt)["trust"]["expired"] is True
    wait_until(lambda: "was signed until" in cvfs.log())
    assert cvfs.log().count("was signed until") == 1
    expire(store, 3600)
    wait_until(lambda: cvfs.status(mnt)["state"] == "ok")
    cvfs.ok("umount", mnt)


@pytest.mark.parametrize("engine", ["channel", "pyfuse3"])
def test_restarted_without_a_network_after_it_has_expired(
    cvfs: Command, store: SmallStore, mnt: Path, engine: str
) -> None:
    """As after a long night without network and power: what is cached is there, and status says how old it is."""
    store.publish({b"file": b"one", b"d/other": b"two", b"never": b"read"})
    options = ("--root", store.root, "--refresh", "0.3", "--known-deadline", "1", "--deadline", "3", "--engine", engine)
    expire(store, 6)
    with FaultyServer(store.path) as server:
        cvfs.ok("mount", *options, server.url, mnt)
        assert (mnt / "file").read_bytes() + (mnt / "d/other").read_bytes() == b"onetwo"
        assert cvfs.status(mnt)["state"] == "ok"
    wait_until(lambda: cvfs.status(mnt)["trust"]["expired"])
    _lose_all(cvfs, mnt)
    for _ in range(2):  # what the first one starts with is what it leaves behind
        assert cvfs("mount", *options, server.url, mnt).returncode == 0
        _is_expired_and_serves(cvfs, mnt)
        cvfs.ok("umount", mnt)
    cvfs("mount", *options, server.url, mnt)
    expire(store, 3600)
    with server:
        wait_until(lambda: cvfs.status(mnt)["state"] == "ok")
        wait_until(lambda: _reads(mnt / "never"))
        cvfs.ok("umount", mnt)


def _lose_all(cvfs: Command, mnt: Path) -> None:
    """No process is left, and nothing in the kernel's caches: as after a reset of the machine."""
    cvfs.kill_all(cvfs.status(mnt)["pid"])
    subprocess.run(["umount", "--lazy", mnt], check=True)
    kernel_caches.drop()


def _is_expired_and_serves(cvfs: Command, mnt: Path) -> None:
    for words in (("status",), ("status", mnt)):
        outcome = cvfs(*words)
        assert (outcome.returncode, b"expired" in outcome.stdout) == (1, True)
    status = cvfs.status(mnt)
    assert (status["state"], status["trust"]["expired"], status["revision"]) == ("expired", True, 2)
    assert (mnt / "file").read_bytes() + (mnt / "d/other").read_bytes() == b"onetwo"
    assert sorted(os.listdir(mnt)) == ["d", "file", "never"]
    assert not _reads(mnt / "never")


def _reads(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


@pytest.mark.parametrize("engine", ["channel", "pyfuse3"])
def test_expired_strictly_is_an_error_whatever_the_kernel_has_cached(
    cvfs: Command, store: SmallStore, mnt: Path, engine: str
) -> None:
    store.publish({b"file": b"one", b"directory/below": b"two", b"link": "file"})
    options = ("--root", store.root, "--refresh", "0.3", "--strict-freshness", "--engine", engine)
    expire(store, 6)
    cvfs.ok("mount", *options, store.path, mnt)
    with open(mnt / "file", "rb") as file, scanning(mnt / "directory") as directory:

        def look() -> list[object]:
            return [
                (mnt / "file").read_bytes(),
                (mnt / "link").read_bytes(),
                (mnt / "directory/below").stat().st_size,
                sorted(os.listdir(mnt)),
                os.listdir(directory),
                os.readlink(mnt / "link"),
                (mnt / "not-there").exists(),
                os.pread(file.fileno(), 10, 0),
            ]

        seen = look()
        assert seen == [b"one", b"one", 3, ["directory", "file", "link"], ["below"], "file", False, b"one"]
        assert look() == seen
        assert cvfs.status(mnt)["trust"]["expired"] is False
        wait_until(lambda: cvfs.status(mnt)["state"] == "expired")
        assert cvfs("status", mnt).returncode == 1
        for question in (
            (mnt / "file").read_bytes,
            (mnt / "link").read_bytes,
            (mnt / "directory/below").stat,
            (mnt / "not-there").stat,
            (mnt / "never-looked-up").stat,
            lambda: os.listdir(mnt),
            lambda: os.listdir(directory),
            lambda: os.pread(file.fileno(), 10, 0),
            mnt.stat,
        ):
            with pytest.raises(OSError, match="Input/output error"):
                question()
        (mnt.parent / "other").mkdir()
        assert "was signed until" in cvfs.refused("mount", *options, store.path, mnt.parent / "other")
        expire(store, 3600)
        wait_until(lambda: cvfs.status(mnt)["state"] == "ok")
        assert look() == seen
    cvfs.ok("umount", mnt)


@contextmanager
def scanning(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_strict_obeys_what_others_have_accepted_and_nobody_means_no() -> None:
    """Only one worker asks for news; the others have to see it in what that has stored, also before the old expiry."""

    class Known:
        """A head that is signed for `fresh_s` more seconds, and what another process has written down."""

        def __init__(self, fresh_s: float | None, stored_s: float | None) -> None:
            self.fresh_s, self._stored_s = fresh_s, stored_s

        @property
        def head(self) -> object:
            trusted = type("Trusted", (), {"expires_s": 0.0})
            manifest = type("Manifest", (), {"revision": 1, "repository": "name"})
            return None if self.fresh_s is None else type("Head", (), {"trusted": trusted, "manifest": manifest})

        @property
        def is_expired(self) -> bool:
            return self.fresh_s is not None and self.fresh_s <= 0

        def recall(self) -> None:
            self.fresh_s = self._stored_s

    for known_s, stored_s, lasting_s in ((3600, 3600, 60), (3600, 20, 20), (-1, 20, 20)):
        strict = StrictFileSystem.__new__(StrictFileSystem)
        strict._heads = Known(known_s, stored_s)  # type: ignore[assignment]
        assert strict._check() == lasting_s
    for known, stored, said in ((3600, -1, "was signed until"), (-1, -1, "was signed until"), (None, None, "nothing")):
        strict._heads = Known(known, stored)  # type: ignore[assignment]
        with pytest.raises(ExpiredError, match=said):
            strict._check()
        for question in (partial(strict.read_parts_nowait, 7, 0, 1), partial(strict.file_nowait, 7)):
            with pytest.raises(ExpiredError, match=said):
                question()
