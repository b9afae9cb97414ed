"""One mount whose only server misbehaves in every way: what is cached never waits, what is not fails in time."""

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import servers
from tests.command import Command, wait_until
from tests.servers import FaultyServer
from tests.small_store import SmallStore

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")

FILES = 120
STALLED = 70
"""More than connections (16), threads, and read-ahead requests that the kernel sends at once (64)."""

DEADLINE_S = 1.5
SLACK_S = 2.0
AT_ONCE_S = 0.5


def content(number: int) -> bytes:
    return random.Random(number).randbytes(20_000)


class Mounted:
    """The mount of `FILES` files, each in a pack of its own; the first was read and is cached."""

    def __init__(self, cvfs: Command, server: FaultyServer, mnt: Path) -> None:
        self.cvfs, self.server, self.mnt = cvfs, server, mnt
        # Against the order of the tree: nothing is brought ahead of who reads so.
        self._unread = sorted(range(FILES), key=str)
        self.names = sorted(os.listdir(mnt))
        self.cached = self.new()
        self.read(self.cached)

    def new(self) -> int:
        """A file that nobody has read."""
        return self._unread.pop()

    def read(self, number: int) -> None:
        assert (self.mnt / f"f{number}").read_bytes() == content(number)

    def reads(self, number: int) -> bool:
        """Whether it can be read; if so it is right."""
        try:
            self.read(number)
        except OSError:
            return False
        return True

    def fail(self, number: int) -> float:
        """Read a file, which fails; the seconds it took."""
        started = time.monotonic()
        with pytest.raises(OSError, match=r"Input/output error|timed out"):
            (self.mnt / f"f{number}").read_bytes()
        return time.monotonic() - started

    def check_cached(self) -> float:
        """What needs no network, from the local cache too; the seconds it took."""
        drop = os.open(self.mnt / f"f{self.cached}", os.O_RDONLY)
        os.posix_fadvise(drop, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(drop)
        started = time.monotonic()
        self.read(self.cached)
        assert sorted(os.listdir(self.mnt)) == self.names
        assert all(entry.stat().st_size for entry in os.scandir(self.mnt))
        assert os.statvfs(self.mnt).f_namemax == 255
        return time.monotonic() - started

    def wait_until_well(self) -> None:
        self.server.recover()
        wait_until(lambda: self.cvfs.status(self.mnt)["network"]["mirrors"][0]["state"] in ("ok", "shunned"), 15)


@pytest.fixture(scope="module", params=["channel"])
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    top = tmp_path_factory.mktemp("bad")
    for name in ("store", "mnt"):
        (top / name).mkdir()
    store = SmallStore(top / "store")
    store.publish({b"f%d" % number: content(number) for number in range(FILES)})
    cvfs, mnt = Command(top), top / "mnt"
    with FaultyServer(store.path) as server:
        cvfs.ok("mount", "--engine", request.param, "--deadline", str(DEADLINE_S), server.url, mnt)
        yield Mounted(cvfs, server, mnt)
        server.recover()
        cvfs.ok("umount", mnt)
        wait_until(lambda: not cvfs.processes())
        cvfs.clean_up()


@pytest.mark.parametrize(
    "fault",
    [
        servers.raw(b""),
        servers.raw(b"nonsense\r\n\r\n"),
        servers.hang,
        servers.hang_in_body(10),
        servers.drip(0.05),
        servers.drip_head(0.05),
        servers.truncate(10),
        servers.shorten(10),
        servers.claim(10**12),
        servers.claim(20),
        servers.flip(7),
        servers.html,
        servers.endless,
        servers.redirect("/elsewhere/for/ever"),
        servers.status("404 Not Found"),
        servers.status("429 Too Many Requests", "Retry-After: 2\r\n"),
        servers.status("500 Internal Server Error"),
    ],
    ids=lambda fault: fault.__qualname__.partition(".")[0],
)
def test_a_bad_answer_costs_one_read_its_deadline_and_others_nothing(mounted: Mounted, fault: servers.Fault) -> None:
    mounted.server.misbehave(fault)
    file = mounted.new()
    assert mounted.fail(file) < DEADLINE_S + SLACK_S
    assert mounted.check_cached() < AT_ONCE_S
    mounted.wait_until_well()
    wait_until(lambda: mounted.reads(file))


@pytest.mark.parametrize("mounted", ["channel", "pyfuse3"], indirect=True)
def test_more_stalled_fetches_than_anything_there_is(mounted: Mounted) -> None:
    """Wedged: every connection hangs and more readers wait; `ls`, `stat`, `df` and cached reads do not notice."""
    mounted.wait_until_well()
    mounted.server.misbehave(servers.hang)
    files = [mounted.new() for _ in range(STALLED)]
    slowest_s: list[float] = []
    waiting = threading.Barrier(STALLED + 1)

    def read(file: int) -> float:
        waiting.wait()
        return mounted.fail(file)

    with ThreadPoolExecutor(STALLED) as pool:
        reads = [pool.submit(read, file) for file in files]
        waiting.wait()
        mounted.server.wait_until(lambda: mounted.server.open_connections >= 16)
        while not any(each.done() for each in reads):
            slowest_s.append(mounted.check_cached())
        took_s = [each.result() for each in reads]
    assert len(slowest_s) > 1
    assert max(slowest_s) < AT_ONCE_S
    assert max(took_s) < DEADLINE_S + SLACK_S
    print(f"{STALLED} stalled reads failed after at most {max(took_s):.1f} s; cached: at most {max(slowest_s):.3f} s")
    mounted.wait_until_well()
    wait_until(lambda: mounted.reads(files[0]))
