"""Wrong bytes from a server: EIO for what needs them, a line in the log, nothing cached, all well once it is right."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.host import Host, Server, Store, eventually, run, wait_until
from tests.e2e.zoo import content

FILES = {f"file{number}": content(1_100_000 + number) for number in range(8)}
DIRECTORIES, NAMES = 9, 600


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


TAMPERINGS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "flipped": lambda data, other: _flip(data),
    "truncated": lambda data, other: data[: len(data) // 2],
    "emptied": lambda data, other: b"",
    "grown": lambda data, other: data + b"more",
    "swapped": lambda data, other: other,
    "swapped for one of the same size": lambda data, other: (other * (len(data) // len(other) + 1))[: len(data)],
    "replaced by a web page": lambda data, other: b"<html>Please log in</html>".ljust(len(data)),
}


class Tampered:
    """A store of which single blobs can be spoilt for a while, and which knows what needs which of them."""

    def __init__(self, top: Path) -> None:
        for name, data in FILES.items():
            (top / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (top / "tree" / name).write_bytes(data)
        for number in range(DIRECTORIES * NAMES):
            path = top / f"tree/dir{number % DIRECTORIES}/{number:04}-{'x' * 150}"
            path.parent.mkdir(exist_ok=True)
            path.touch()
        self.store = Store(top / "store")
        self.store.publish(top / "tree")
        self.server = Server(self.store.path, top)

    def needed_by(self, look: Callable[[], object], asked: Callable[[], int]) -> list[str]:
        """The blobs that are asked for when something is looked at, in order. `asked`: requests until now, as the only
        client counts them; the server logs a request only once it has answered it."""
        before = len(self.server.requests())
        look()
        wait_until(lambda: self.server.answered() >= asked())
        return self.server.requests()[before:]

    @contextlib.contextmanager
    def spoilt(self, blob: str, tampering: str, other: str) -> Iterator[None]:
        path = self.store.path / blob
        right = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(TAMPERINGS[tampering](right, (self.store.path / other).read_bytes()))
        try:
            yield
        finally:
            path.write_bytes(right)


@pytest.fixture(scope="session")
def tampered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tampered]:
    tampered = Tampered(tmp_path_factory.mktemp("tampered"))
    yield tampered
    tampered.server.close()


@pytest.fixture(scope="session")
def needs(tampered: Tampered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Which blob each file, and each directory's listing, is the first to need; and "" for the root of the tree."""
    with contextlib.closing(Host(tmp_path_factory.mktemp("probe"), "auto")) as host:
        mount = host.new_directory()

        def asked() -> int:
            return int(host.status(mount)["transport"]["requests"])

        root = tampered.needed_by(lambda: host.mount(tampered.server.url, on=mount), asked)
        found = {"": root[0]}
        for number in range(DIRECTORIES):
            blobs = tampered.needed_by(lambda number=number: os.lstat(_last_of(mount, number)), asked)
            if blobs:
                found[f"dir{number}"] = blobs[-1]
        for name in reversed(FILES):  # nothing is brought ahead of who reads packs against their order
            blobs = tampered.needed_by(lambda name=name: (mount / name).read_bytes(), asked)
            if blobs:
                found[name] = blobs[-1]
        yield found


def _last_of(mount: Path, number: int) -> Path:
    return mount / f"dir{number}" / f"{DIRECTORIES * (NAMES - 1) + number:04}-{'x' * 150}"


def _fails(action: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says more than a text
        action()
    assert caught.value.errno == errno.EIO


def _names(log: str, blob: str, url: str) -> bool:
    """Whether some line of a log says which blob was wrong, and where it came from."""
    digest = blob.removeprefix("data/").replace("/", "")
    return any((digest in line or blob in line) and url in line for line in log.splitlines() if "ERROR" in line)


def test_spoilt_packs(host: Host, tampered: Tampered, needs: dict[str, str]) -> None:
    mount = host.mount(tampered.server.url)
    for tampering, bad in zip(TAMPERINGS, list(FILES)[-2::-1], strict=True):
        with tampered.spoilt(needs[bad], tampering, needs["file7"]):
            _fails((mount / bad).read_bytes)
            assert (mount / "file7").read_bytes() == FILES["file7"]
            _fails((mount / bad).read_bytes)
            wait_until(lambda bad=bad: _names(host.log(), needs[bad], tampered.server.url))
        assert eventually((mount / bad).read_bytes) == FILES[bad], tampering
    host.remount(mount, tampered.server.url)
    for name, data in FILES.items():
        assert (mount / name).read_bytes() == data
    host.umount(mount)


def test_spoilt_pages(host: Host, tampered: Tampered, needs: dict[str, str]) -> None:
    mount = host.mount(tampered.server.url)
    numbers = [number for number in range(DIRECTORIES) if f"dir{number}" in needs]
    good = numbers.pop()
    assert len(numbers) >= 5
    for tampering, number in zip(list(TAMPERINGS)[::-1], numbers, strict=False):
        bad = needs[f"dir{number}"]
        with tampered.spoilt(bad, tampering, needs["file7"]):
            _fails(lambda number=number: os.lstat(_last_of(mount, number)))
            _fails(lambda number=number: os.listdir(mount / f"dir{number}"))
            os.lstat(_last_of(mount, good))
            assert (mount / "file7").read_bytes() == FILES["file7"]
            wait_until(lambda bad=bad: _names(host.log(), bad, tampered.server.url))
        assert eventually(lambda number=number: os.lstat(_last_of(mount, number))).st_size == 0
        assert len(os.listdir(mount / f"dir{number}")) == NAMES, tampering
    assert len(run("find", mount, "-type", "f").stdout.splitlines()) == DIRECTORIES * NAMES + len(FILES)
    host.umount(mount)


def test_a_spoilt_root_is_not_mounted(auto_host: Host, tampered: Tampered, needs: dict[str, str]) -> None:
    directory = auto_host.new_directory()
    for tampering in ("flipped", "truncated", "grown"):
        with tampered.spoilt(needs[""], tampering, needs["file0"]):
            assert tampered.server.url in auto_host.refused(tampered.server.url, directory)
    auto_host.mount(tampered.server.url, on=directory)
    assert os.listdir(directory)


HEADS = [b"", b"{}", b"\xff\xfe", b"x" * 100_000]


def test_a_spoilt_head_is_not_mounted(auto_host: Host, store: Store, tree: Path, server: Server) -> None:
    (tree / "file").write_text("content")
    store.publish(tree)
    head = store.path / "metadata/timestamp.json"
    right = head.read_bytes()
    directory = auto_host.new_directory()
    for wrong in (*HEADS, right.replace(b'"version": 2', b'"version": 3')):
        head.write_bytes(wrong)
        assert server.url in auto_host.refused(server.url, directory)
    head.write_bytes(right)
    auto_host.mount(server.url, on=directory)
    assert (directory / "file").read_text() == "content"
    # What was good before goes on when the head is spoilt later.
    head.write_bytes(HEADS[0])
    auto_host.umount(directory)
    outcome = auto_host.cvfs("mount", server.url, directory)
    assert outcome.stderr.count(b"\n") == 1
    assert (directory / "file").read_text() == "content"


def test_an_older_head_is_not_gone_back_to(auto_host: Host, store: Store, tree: Path, server: Server) -> None:
    (tree / "file").write_text("one")
    store.publish(tree)
    old = (store.path / "metadata/timestamp.json").read_bytes()
    (tree / "file").write_text("second")
    store.publish(tree)
    mount = auto_host.mount(server.url)
    assert (mount / "file").read_text() == "second"
    (store.path / "metadata/timestamp.json").write_bytes(old)
    auto_host.remount(mount, server.url)
    assert (mount / "file").read_text() == "second"
    assert auto_host.status(mount)["revision"] == 2
    auto_host.umount(mount)
