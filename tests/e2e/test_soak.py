"""A bad day: everything fails, one after the other and together, while programs read.

`--long` makes it an hour. Whatever happens, a read gives what was published, or fails within its deadline; and
afterwards all is as before.
"""

import contextlib
import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cache.disks import fill, small_disk
from tests.e2e.host import Host, Store, kill, wait_until
from tests.e2e.test_switch import Held, held
from tests.servers import Exchange, FaultyServer, behave

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs and drops the kernel's caches")

LASTS_S = 60.0
LONG_S = 3600.0
DEADLINE_S = 4.0
STALL_S = 5 * DEADLINE_S
"""No read may take longer: it is a lookup and at most two packs, each with a deadline, and the machine may be busy."""

NAMES = ("a.example.org", "b.example.org", "c.example.org")
SMALL = {f"small{number}": 30_000 + number for number in range(60)}
BIG = {f"big{number}": 1_500_000 + number for number in range(12)}
LARGE = {f"large{number}": 7_000_000 + number for number in range(6)}
FILES = SMALL | BIG | LARGE
"""60 MB in each repository: five times the cache, and more than a worker may have in memory. So reads need servers."""

PART_BYTES = 128 << 10

MOST = Held(descriptors=100, threads=40, anonymous_kib=160 << 10)
"""What a worker of three repositories may have in the end: their packs and pages in memory, threads for servers."""


def content(name: str, file: str) -> bytes:
    return random.Random(f"{name} {file}").randbytes(FILES[file])


def _read(path: Path, offset: int) -> bytes:
    """A part of a file, from the mount, not from the kernel's cache."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        found, wanted = b"", min(PART_BYTES, FILES[path.name] - offset)
        while len(found) < wanted:  # read(2) that fails behind some good pages gives those first
            part = os.pread(file.fileno(), wanted - len(found), offset + len(found))
            assert part, "a file ends early"
            found += part
        return found


class Readers:
    """Threads that read files of all repositories, and check every byte."""

    def __init__(self, mount: Path) -> None:
        self._mount = mount
        self.expected = {(name, file): content(name, file) for name in NAMES for file in FILES}
        self.newest = dict.fromkeys(NAMES, 0)
        self.reads, self.longest_s = 0, 0.0
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(seed,)) for seed in range(4)]

    def __enter__(self) -> "Readers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * STALL_S)
        assert not any(thread.is_alive() for thread in self._threads), "a read hangs"

    def _repeat(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self.read_one(chance)
            except AssertionError as error:
                self.wrong.append(str(error))
            except OSError as error:
                self.errors[errno.errorcode[error.errno or 0]] += 1
                self._stop.wait(0.05)
            self.reads += 1
            self.longest_s = max(self.longest_s, time.monotonic() - started)

    def read_one(self, chance: random.Random) -> None:
        name = chance.choice(NAMES)
        if chance.random() < 0.2:
            number = int((self._mount / name / "changes").read_bytes())
            if number > self.newest[name]:
                self.wrong.append(f"{name}: revision {number} is not there yet")
            return
        if chance.random() < 0.05:
            if set(os.listdir(self._mount / name)) != {*FILES, "changes"}:
                self.wrong.append(f"{name}: the listing")
            return
        file = chance.choice(list(chance.choice((SMALL, BIG, LARGE))))
        offset = chance.randrange(FILES[file])
        if _read(self._mount / name / file, offset) != self.expected[name, file][offset : offset + PART_BYTES]:
            self.wrong.append(f"{name}/{file} from {offset} on")


class Soak:
    """A host with a small disk for its cache, two mirrors, a proxy between, and all that can be done to them."""

    def __init__(self, top: Path, until_done: contextlib.ExitStack) -> None:
        self.top, self.served = top, top / "served"
        self.host = Host(top / "host", "channel")
        for directory in (self.host.top, top / "etc/repositories.d", self.served):
            directory.mkdir(parents=True)
        until_done.callback(self.host.close)
        self.disk = until_done.enter_context(small_disk(self.host.cache, "16m"))
        self.servers = [until_done.enter_context(FaultyServer(self.served)) for _ in range(3)]
        *self.mirrors, self.proxy = self.servers
        self._configure()
        self.mount = self.host.new_directory()
        self.readers = Readers(self.mount)
        self.stores = {name: Store(self.served / name, name) for name in NAMES}
        for name in NAMES:
            self.publish(name)

    def _configure(self) -> None:
        del self.host.environment["CVFS_ROOT"]
        self.host.environment["CVFS_CONFIG"] = str(self.top / "etc")
        lines = [f"deadline_s = {DEADLINE_S}", "refresh_s = 2", 'cache_limit = "12 MB"', 'keep_free = "1 %"']
        (self.top / "etc/config.toml").write_text("\n".join(lines) + "\n")
        first, second = (mirror.url for mirror in self.mirrors)
        for name in NAMES:
            urls = f'url = "{first}/{name}"\nmirrors = ["{second}/{name}"]\n'
            rest = f'proxies = [["{self.proxy.url}"], ["DIRECT"]]\nroot = "{self.served}/{name}-keys/root.json"\n'
            (self.top / f"etc/repositories.d/{name}.toml").write_text(urls + rest)

    def publish(self, name: str) -> None:
        tree = self.top / "trees" / name
        if not tree.exists():
            tree.mkdir(parents=True)
            for file in FILES:
                (tree / file).write_bytes(self.readers.expected[name, file])
        self.readers.newest[name] += 1
        (tree / "changes").write_text(str(self.readers.newest[name]))
        self.stores[name].publish_here(tree)

    def worker(self) -> int:
        return int(self.host.status(self.mount)["worker_pid"])

    # What can go wrong; each ends with what it began.

    @contextlib.contextmanager
    def mirror_dies(self) -> Iterator[None]:
        mirror = random.choice(self.mirrors)
        mirror.__exit__()
        yield
        mirror.__enter__()

    @contextlib.contextmanager
    def network_drops(self) -> Iterator[None]:
        """For longer than reads are patient."""
        for server in self.servers:
            server.__exit__()
        yield
        threading.Event().wait(DEADLINE_S)
        for server in self.servers:
            server.__enter__()

    @contextlib.contextmanager
    def network_lags(self) -> Iterator[None]:
        for server in self.servers:
            server.misbehave(_late)
        yield
        for server in self.servers:
            server.recover()

    @contextlib.contextmanager
    def proxy_lies(self) -> Iterator[None]:
        self.proxy.misbehave(_lie)
        yield
        self.proxy.recover()

    @contextlib.contextmanager
    def disk_fills(self) -> Iterator[None]:
        filler = fill(self.disk)
        yield
        filler.unlink(missing_ok=True)

    @contextlib.contextmanager
    def cache_is_damaged(self) -> Iterator[None]:
        files = [path for kind in ("objects", "packs", "large", "blobs") for path in (self.disk / kind).rglob("*")]
        for path in random.sample(files, len(files) // 2):
            with contextlib.suppress(OSError), path.open("r+b") as file:
                file.write(b"damaged")
        yield

    @contextlib.contextmanager
    def worker_is_killed(self) -> Iterator[None]:
        with contextlib.suppress(ProcessLookupError):
            kill(self.worker())
        yield

    @contextlib.contextmanager
    def revision_changes(self) -> Iterator[None]:
        self.publish(random.choice(NAMES))
        yield

    @contextlib.contextmanager
    def kernel_forgets(self) -> Iterator[None]:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        yield

    def faults(self) -> list[Callable[[], contextlib.AbstractContextManager[None]]]:
        network = [self.mirror_dies, self.network_drops, self.network_lags, self.proxy_lies]
        local = [self.disk_fills, self.cache_is_damaged, self.worker_is_killed, self.kernel_forgets]
        return [*network, *local, self.revision_changes]


def _late(exchange: Exchange) -> None:
    exchange.stopping.wait(0.3)
    behave(exchange)


def _lie(exchange: Exchange) -> None:
    if exchange.body:
        exchange.body = exchange.body[:-1] + bytes([exchange.body[-1] ^ 1])
    behave(exchange)


@pytest.mark.timeout(LONG_S + 300)
def test_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str], pytestconfig: pytest.Config) -> None:
    lasts_s = LONG_S if pytestconfig.getoption("--long") else LASTS_S
    with contextlib.ExitStack() as until_done:
        soak = Soak(tmp_path, until_done)
        soak.host.cvfs("mount", "--all", soak.mount, "--engine", "channel")
        until_done.callback(soak.host.umount, soak.mount, "--lazy")
        injected: Counter[str] = Counter()
        with soak.readers:
            _torment(soak, 5, injected)
            supervisor = int(soak.host.status(soak.mount)["pid"])
            before = held(supervisor)
            _torment(soak, lasts_s - 5, injected)
        with capsys.disabled():
            _print(soak, injected)
        assert soak.readers.wrong == []
        assert set(soak.readers.errors) <= {"EIO", "EINTR", "ETIMEDOUT"}
        assert soak.readers.errors, "no read has noticed that the network was down: they do not reach it"
        assert soak.readers.longest_s < STALL_S
        _is_healthy(soak)
        worker = held(soak.worker())
        assert worker.descriptors < MOST.descriptors
        assert worker.threads < MOST.threads
        assert worker.anonymous_kib < MOST.anonymous_kib
        after = held(supervisor)
        assert after.descriptors <= before.descriptors + 4
        assert after.threads <= before.threads + 4
        assert after.anonymous_kib <= before.anonymous_kib + 16_384
        assert Path("/proc/self/mountinfo").read_text().count(str(soak.mount)) == 1


def _torment(soak: Soak, lasts_s: float, injected: Counter[str]) -> None:
    """Each fault in turn, two at a time, for a moment."""
    until, pause = time.monotonic() + lasts_s, threading.Event()
    while time.monotonic() < until:
        faults = random.sample(soak.faults(), len(soak.faults()))
        for first, second in zip(faults, [*faults[1:], soak.kernel_forgets], strict=True):
            if time.monotonic() > until:
                return
            if {first.__name__, second.__name__} == {"network_drops", "mirror_dies"}:
                continue  # what is stopped cannot be stopped
            with first(), second():
                injected.update((first.__name__, second.__name__))
                pause.wait(random.uniform(0.3, 1))
            for server in soak.servers:
                server.seen.clear()


def _print(soak: Soak, injected: Counter[str]) -> None:
    readers, answered = soak.readers, sum(sum(server.requests.values()) for server in soak.servers)
    print(f"\n{readers.reads} reads, {sum(readers.errors.values())} failed {dict(readers.errors)}")
    print(f"longest {readers.longest_s:.1f} s; {answered} requests; faults {dict(injected)}")
    print(f"the worker at last: {held(soak.worker())}")


def _is_healthy(soak: Soak) -> None:
    """Everything reads right again, the newest revision too, and the mount says that it is well."""

    def reads() -> bool:
        with contextlib.suppress(OSError):
            return all(
                int((soak.mount / name / "changes").read_bytes()) == newest
                and all((soak.mount / name / file).read_bytes() == soak.readers.expected[name, file] for file in FILES)
                for name, newest in soak.readers.newest.items()
            )
        return False

    wait_until(reads, timeout_s=40)
    wait_until(lambda: soak.host.cvfs("status", soak.mount, check=False).returncode == 0, timeout_s=30)
