"""Attacks by whoever owns the network or a mirror, on real sockets: time and space that are not to be had; and by
another user of the same host."""

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from cvfs.cache import Cache
from cvfs.errors import ConfigError, CvfsError
from cvfs.format.blob import blob_path
from cvfs.heads import Head, Heads
from cvfs.mirrors import Mirrors, Network
from cvfs.transport import Transport
from cvfs.trust import names, state
from cvfs.trust.anchor import Anchor
from cvfs.trust.values import root_id
from publisher.repository import head
from tests import servers
from tests.command import Command
from tests.servers import FaultyServer
from tests.small_store import SmallStore
from tests.trust.simulator import NOW_S, Publisher

DEADLINE_S = 0.5
GIB = 1 << 30
NOBODY = 65534
FILES = ("timestamp", "root", "snapshot", "targets", "manifest")


class Wire:
    """A publisher, a server with its files, and a client that knows revision 1 while the server has revision 2."""

    def __init__(self, top: Path) -> None:
        self.top, self.publisher = top, Publisher(top / "keys")
        self.directory = top / "store"
        self.publisher.publish()
        self.write()

    def write(self) -> None:
        for path, data in self.publisher.files.items():
            (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
            (self.directory / path).write_bytes(data)

    def path(self, what: str) -> str:
        if what == "manifest":
            return "/" + blob_path(head.read_head(self.publisher.store).blob.id)
        return "/" + (names.metadata_path("root", 2) if what == "root" else self.publisher.current(what))

    def refresh(self, url: str, state: str = "state") -> Head:
        return trio.run(self._refresh, url, self.top / state)

    async def _refresh(self, url: str, state: Path) -> Head:
        root = self.publisher.root
        with closing(Transport(user_agent="test")) as transport:
            mirrors = Mirrors(Network(transport), [url])
            heads = Heads(mirrors, "http://test", state, Anchor("test", root, root_id(root)), now=lambda: NOW_S + 60)
            found = await heads.current(DEADLINE_S)
            if not found.problem:
                await heads.accept(found)
            return found


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Wire, FaultyServer]]:
    wire = Wire(tmp_path_factory.mktemp("wire"))
    with FaultyServer(wire.directory) as server:
        assert wire.refresh(server.url).manifest.revision == 1
        wire.publisher.publish()
        (wire.directory / names.metadata_path("root", 2)).write_bytes(b"{}")  # so that a fault has a body to spoil
        wire.write()
        yield wire, server


def withstands(wire: tuple[Wire, FaultyServer], what: str, fault: servers.Fault) -> int:
    """The bytes that were sent; within its deadline, who knows revision 1 goes on and who knows nothing refuses."""
    world, server = wire
    path, before = world.path(what), (world.top / "state" / state.FILE).read_bytes()
    server.recover()
    server.sent_bytes.clear()
    if what != "root":
        server.misbehave(servers.status("404 Not Found"), world.path("root"))
    server.misbehave(fault, path)
    started = time.monotonic()
    found = world.refresh(server.url)
    assert (found.manifest.revision, bool(found.problem)) == (1, True), what
    with pytest.raises(CvfsError):
        world.refresh(server.url, "new")
    assert time.monotonic() - started < 2 * DEADLINE_S + 3
    assert (world.top / "state" / state.FILE).read_bytes() == before
    assert not (world.top / "new").exists()
    server.recover()
    return server.sent_bytes[path]


@pytest.mark.parametrize("what", FILES)
def test_slow_retrieval(wire: tuple[Wire, FaultyServer], what: str) -> None:
    """A byte now and then: the deadline is for the whole, not for each byte."""
    assert withstands(wire, what, servers.drip(0.05)) < 400


@pytest.mark.parametrize("what", ["timestamp", "targets", "manifest"])
def test_no_retrieval(wire: tuple[Wire, FaultyServer], what: str) -> None:
    withstands(wire, what, servers.hang)


@pytest.mark.parametrize("what", FILES)
def test_endless_data(wire: tuple[Wire, FaultyServer], what: str) -> None:
    """Neither length nor end: no more is read than such a file may have (and what sockets hold)."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    withstands(wire, what, servers.endless)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.parametrize("what", FILES)
def test_metadata_of_a_gibibyte(wire: tuple[Wire, FaultyServer], what: str) -> None:
    """Said beforehand, it is not read at all; and not believed where it is a lie."""

    def gibibyte(exchange: servers.Exchange) -> None:
        exchange.answer(length=GIB)
        for _ in range(GIB >> 16):
            exchange.send(bytes(65536))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent_bytes = withstands(wire, what, gibibyte)
    assert sent_bytes < 32 << 20, "more than sockets hold"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    withstands(wire, what, servers.claim(GIB))


def test_afterwards_the_client_follows(wire: tuple[Wire, FaultyServer]) -> None:
    world, server = wire
    server.recover()
    server.misbehave(servers.status("404 Not Found"), world.path("root"))
    found = world.refresh(server.url, "other")
    assert (found.problem, found.manifest.revision) == ("", 2)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user as well")


@pytest.fixture
def open_top() -> Iterator[Path]:
    """A directory that everybody may enter and write to, as /tmp."""
    with tempfile.TemporaryDirectory(prefix="cvfs-test-") as name:
        Path(name).chmod(0o1777)
        yield Path(name)


def as_nobody(*line: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        line, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, check=False, timeout=30
    )


@needs_root
def test_another_user_can_write_nowhere_in_what_a_client_keeps(open_top: Path, tmp_path: Path) -> None:
    """Cache, state, sockets and logs of a mount, looked at by a real other user."""
    (tmp_path / "store").mkdir()
    store = SmallStore(tmp_path / "store")
    store.publish({b"file": b"one"})
    cvfs = Command(open_top)
    (open_top / "mnt").mkdir()
    umask = os.umask(0)  # nothing that is kept depends on it
    try:
        cvfs.ok("mount", "--root", store.root, store.path, open_top / "mnt")
        assert (open_top / "mnt/file").read_bytes() == b"one"
        kept = [cvfs.cache, cvfs.state, cvfs.runtime, cvfs.logs]
        assert all(path.is_dir() for path in kept)
        for path in kept:
            found = as_nobody("find", path, "-writable", "-not", "-type", "l", "-print")
            assert not found.stdout, found.stdout
        secret = as_nobody("cat", next((cvfs.cache / "packs").rglob("*/*")))
        assert secret.returncode != 0
        planted = as_nobody("cp", "/bin/true", cvfs.cache / "packs")
        assert planted.returncode != 0
        cvfs.ok("umount", open_top / "mnt")
    finally:
        os.umask(umask)
        cvfs.clean_up()


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o777])
def test_a_cache_that_another_user_has_made_ready_is_refused(open_top: Path, mode: int) -> None:
    """Who is there first, where everybody may write: with a cache of his own, in our layout."""
    code = "import sys, os, pathlib; p = pathlib.Path(sys.argv[1]); p.mkdir(); (p / 'CVFS-CACHE').write_text('1\\n')"
    made = as_nobody("/usr/bin/python3", "-c", f"{code}; p.chmod({mode})", open_top / "cache")
    assert made.returncode == 0, made.stderr
    with pytest.raises(ConfigError, match=f"belongs to uid {NOBODY}"):
        Cache(open_top / "cache")


@needs_root
@pytest.mark.parametrize("place", ["", "key", "key/trusted.json"])
def test_a_state_that_another_user_can_change_is_refused(tmp_path: Path, place: str) -> None:
    """It would say what is trusted. Nothing of it is used, whatever root is named."""
    wire = Wire(tmp_path)
    with FaultyServer(wire.directory) as server:
        assert wire.refresh(server.url, "state/key").problem == ""
        theirs, mode = tmp_path / "state" / place, (tmp_path / "state" / place).stat().st_mode
        os.chown(theirs, NOBODY, NOBODY)
        with pytest.raises(ConfigError, match=f"belongs to uid {NOBODY}, who could decide what is trusted"):
            wire.refresh(server.url, "state/key")
        os.chown(theirs, 0, 0)
        for open_to_others in (0o020, 0o002):
            theirs.chmod(mode | open_to_others)
            with pytest.raises(ConfigError, match="others may write to"):
                wire.refresh(server.url, "state/key")
        theirs.chmod(mode)
        assert wire.refresh(server.url, "state/key").problem == ""


@needs_root
def test_a_state_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask, and with the directory that it is in."""
    wire, umask = Wire(tmp_path), os.umask(0)
    try:
        with FaultyServer(wire.directory) as server:
            wire.refresh(server.url, "state/key")
    finally:
        os.umask(umask)
    for name, mode in (("state", 0o700), ("state/key", 0o700), ("state/key/trusted.json", 0o600)):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode
