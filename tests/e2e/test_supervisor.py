"""Workers that die, hang or are replaced under a mount that is in use: nobody notices."""

import contextlib
import mmap
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from cvfs.fuse import kernel
from cvfs.fuse.cpus import share
from tests import kernel_caches
from tests.e2e.host import PYTHON, Host, Server, Store, kill, mounts_below, processes_of, run, wait_until
from tests.e2e.supervised import LARGE, SMALL, break_start, children, copy_code, fill, supervisor_of, workers
from tests.servers import FaultyServer, hang


@pytest.fixture(scope="module")
def engine() -> str:
    """Only the channel has a supervisor."""
    return "channel"


@pytest.fixture
def filled(store: Store, tree: Path) -> Store:
    fill(store, tree)
    return store


class Users:
    """Threads that use a mount until told to stop; `problems` is what they met with."""

    def __init__(self, mount: Path, cache: Path) -> None:
        self.mount, self.cache = mount, cache
        self.problems: list[str] = []
        self.rounds = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(work,)) for work in self._works()]

    def __enter__(self) -> "Users":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)

    def _works(self) -> list[Callable[[], None]]:
        return [self._read, self._read, self._map, self._walk, self._execute, self._forget]

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                work()
            except (OSError, AssertionError) as error:
                self.problems.append(f"{work.__name__}: {error!r}")
            self.rounds += 1

    def _read(self) -> None:
        name = random.choice(list(SMALL))
        assert (self.mount / name).read_bytes() == SMALL[name]

    def _map(self) -> None:
        with open(self.mount / "large", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            at = random.randrange(len(LARGE) - 5000)
            assert mapped[at : at + 5000] == LARGE[at : at + 5000]

    def _walk(self) -> None:
        found = sum(len(files) for _, _, files in os.walk(self.mount, onerror=self._fail))
        assert found == len(SMALL) + 2

    def _fail(self, error: OSError) -> None:
        raise error

    def _execute(self) -> None:
        assert run(self.mount / "run").stdout == b"ran\n"

    def _forget(self) -> None:
        """Have the kernel ask again, and find nothing in the cache, so that it is written to all the time."""
        kernel_caches.drop()
        shutil.rmtree(self.cache / random.choice(["objects", "packs", "large", "blobs"]), ignore_errors=True)
        self._stop.wait(0.2)


@pytest.mark.parametrize("count", [1, 2])
def test_storm_of_kills(host: Host, filled: Store, count: int, pytestconfig: pytest.Config) -> None:
    mount = host.mount(filled.path, "--workers", str(count))
    seconds = 60 if pytestconfig.getoption("--long") else 4
    supervisor = supervisor_of(host, mount)
    with Users(mount, host.cache) as users:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(random.choice(workers(supervisor)), signal.SIGKILL)
            time.sleep(0.1)
    assert users.problems == []
    assert users.rounds > 10
    assert host.status(mount)["restarts"] > 5
    for pid in workers(supervisor):  # who comes after them has nothing in memory, and fills the cache
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    kernel_caches.drop()
    assert all((mount / name).read_bytes() == data for name, data in SMALL.items())
    host.umount(mount)
    _check_cache(host.cache)


def _check_cache(cache: Path) -> None:
    """Whenever a worker was killed, what has the name of an object or a pack is that."""
    files = [path for kind in ("objects", "packs") for path in (cache / kind).glob("??/*") if len(path.name) == 62]
    assert files
    assert [path for path in files if blake3(path.read_bytes()).hexdigest() != path.parent.name + path.name] == []


def test_kill_in_the_middle_of_a_fetch(host: Host, filled: Store) -> None:
    with FaultyServer(filled.path) as server:
        mount = host.mount(server.url)
        os.listdir(mount)
        server.misbehave(hang, times=1)
        reader = subprocess.Popen(["cat", mount / "large"], stdout=subprocess.PIPE)
        wait_until(lambda: "READ" in host.status(mount)["requests"])
        (pid,) = workers(supervisor_of(host, mount))
        server.recover()
        kill(pid)
        assert reader.communicate(timeout=30)[0] == LARGE
        host.umount(mount)


@pytest.mark.parametrize("how", ["goes on", "cannot repeat", "ends"])
def test_worker_that_the_kernel_holds_when_it_is_killed(host: Host, store: Store, tree: Path, how: str) -> None:
    """It waits in a notice for the lock of a directory, which a lookup there has until it is answered: by another."""
    host.environment |= {"CVFS_PING_S": "0.2", "CVFS_HANG_S": "1"}
    if how == "cannot repeat":
        host.environment |= {"CVFS_NO_RESEND": "1"}
    (tree / "many").mkdir()
    for number in range(20_000):
        (tree / f"many/{number:05}").touch()
    store.publish(tree)
    with FaultyServer(store.path) as server:
        mount = host.mount(server.url, "-o", "refresh_s=3600,deadline_s=4", "-o", "invalidate=exact")
        assert (mount / "many/00000").stat().st_size == 0
        supervisor = supervisor_of(host, mount)
        (pid,) = workers(supervisor)
        for blob in store.blobs():
            server.misbehave(hang, path=f"/{blob.relative_to(store.path)}")
        with subprocess.Popen(["stat", mount / "many/19999"], stdout=subprocess.DEVNULL) as reader:
            wait_until(lambda: host.status(mount)["requests_waited"] > 0)
            (tree / "many/00000").write_bytes(b"new")
            store.publish(tree)
            words = [*PYTHON, "-m", "cvfs", "refresh", mount]
            with subprocess.Popen(words, env=host.environment, stderr=subprocess.DEVNULL) as refresh:
                wait_until(lambda: _is_held(pid), 20)
                os.kill(pid, signal.SIGKILL)
                server.recover()
                if how == "ends":
                    os.kill(supervisor, signal.SIGTERM)
                assert (reader.wait(30) == 0) is (how == "goes on")
                refresh.wait(30)
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
        if how == "ends":
            wait_until(lambda: supervisor not in processes_of(host.top))
            assert str(mount) not in Path("/proc/self/mountinfo").read_text()
            return
        wait_until((mount / "many/11111").exists)
        host.umount(mount)


def _is_held(pid: int) -> bool:
    """Whether one of its threads is in the kernel where no signal reaches it."""
    with contextlib.suppress(OSError):
        states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        return "D" in states
    return False


def test_worker_that_hangs_is_replaced(host: Host, filled: Store) -> None:
    host.environment |= {"CVFS_PING_S": "0.2", "CVFS_HANG_S": "1"}
    mount = host.mount(filled.path)
    wait_until(lambda: _is_idle(host.status(mount)["pid"]))
    (pid,) = workers(supervisor_of(host, mount))
    os.kill(pid, signal.SIGSTOP)
    assert (mount / "d0/f0").read_bytes() == SMALL["d0/f0"]
    assert pid not in workers(supervisor_of(host, mount))
    assert "does not answer" in host.log()
    host.umount(mount)


@pytest.mark.parametrize("count", [1, 2])
def test_kernel_that_cannot_repeat_requests(host: Host, filled: Store, count: int) -> None:
    """As Linux before 6.9: whoever waits gets an error, never nothing, and the mount is there again at once."""
    host.environment |= {"CVFS_NO_RESEND": "1"}
    with FaultyServer(filled.path) as server:
        mount = host.mount(server.url, "--workers", str(count))
        wait_until(lambda: len(workers(supervisor_of(host, mount))) == count)
        supervisor = supervisor_of(host, mount)
        server.misbehave(hang)
        reader = subprocess.Popen(["cat", mount / "large"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: "READ" in host.status(mount)["requests"])
        server.recover()
        kill(host.status(mount)["worker_pid"])
        assert reader.wait(10) == 1
        wait_until(lambda: _reads(mount / "d1/f1"))
        assert (mount / "large").read_bytes() == LARGE
        assert (supervisor_of(host, mount), host.status(mount)["restarts"]) == (supervisor, 1)
        wait_until(lambda: len(workers(supervisor)) == count)
        assert "mounting anew" in host.log()
        host.umount(mount)
        assert str(mount) not in Path("/proc/self/mountinfo").read_text()


def test_lost_mount_in_whose_place_another_is(host: Host, filled: Store) -> None:
    """It is not made anew, and nothing is left of it."""
    host.environment |= {"CVFS_NO_RESEND": "1"}
    mount = host.mount(filled.path)
    first = host.status(mount)
    with open(mount / "large", "rb"):
        host.umount(mount, "--lazy")
        host.mount(filled.path, on=mount)
        second = supervisor_of(host, mount)
        kill(first["worker_pid"])
        wait_until(lambda: first["pid"] not in processes_of(host.top))
    assert (mount / "d1/f1").read_bytes() == SMALL["d1/f1"]
    assert supervisor_of(host, mount) == second
    host.umount(mount)


def test_worker_that_hears_late_of_its_end_leaves_the_next_mount_alone(host: Host, filled: Store) -> None:
    """The kernel has given that the number of the former one, unless a mount elsewhere was faster."""
    mount = host.mount(filled.path)
    first = host.status(mount)
    for pid in (first["pid"], first["worker_pid"]):
        os.kill(pid, signal.SIGSTOP)
    kernel.unmount(mount)
    host.mount(filled.path, on=mount)
    for pid in (first["worker_pid"], first["pid"]):
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: first["pid"] not in processes_of(host.top))
    assert (mount / "d1/f1").read_bytes() == SMALL["d1/f1"]
    host.umount(mount)


def _is_idle(pid: int) -> bool:
    """Whether a process has slept for half a second without any wake-up."""
    before = _switches(pid)
    time.sleep(0.5)
    return _switches(pid) == before


def _switches(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def test_idle_mount_sleeps(host: Host, filled: Store) -> None:
    host.environment |= {"CVFS_PING_S": "0.1"}
    mount = host.mount(filled.path)
    supervisor = host.status(mount)["pid"]
    (worker,) = workers(supervisor_of(host, mount))
    (template,) = children(supervisor)
    for pid in (supervisor, worker, template):
        wait_until(lambda: _is_idle(pid), timeout_s=20)  # noqa: B023
    assert Path(f"/proc/{supervisor}/status").read_text().count("Threads:\t1") == 1
    host.umount(mount)


def test_reload_under_users(host: Host, filled: Store) -> None:
    mount = host.mount(filled.path)
    with Users(mount, host.cache) as users:
        before = workers(supervisor_of(host, mount))
        for generation in range(1, 4):
            host.cvfs("reload", mount)
            assert host.status(mount)["generation"] == generation
    assert users.problems == []
    wait_until(lambda: len(workers(supervisor_of(host, mount))) == 1)
    assert set(before).isdisjoint(workers(supervisor_of(host, mount)))
    host.umount(mount)


@pytest.fixture
def code(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code, which the commands of the host use; it can be broken."""
    monkeypatch.chdir("/")
    return copy_code(host, tmp_path)


def test_reload_of_broken_code_changes_nothing(host: Host, filled: Store, code: Path) -> None:
    mount = host.mount(filled.path)
    before = workers(supervisor_of(host, mount))
    worker = code / "cvfs/mount/channel_worker.py"
    whole = worker.read_text()
    worker.write_text("raise RuntimeError('broken')\n")
    outcome = host.cvfs("reload", mount, check=False)
    assert outcome.returncode == 1
    assert b"did not start" in outcome.stderr
    assert (mount / "d0/f0").read_bytes() == SMALL["d0/f0"]
    assert workers(supervisor_of(host, mount)) == before
    worker.write_text(whole)
    host.cvfs("reload", mount)
    assert set(before).isdisjoint(workers(supervisor_of(host, mount)))
    host.umount(mount)


@pytest.mark.parametrize("environment", [{}, {"CVFS_NO_RESEND": "1"}], ids=["repeats", "mounts anew"])
def test_no_worker_can_start(host: Host, filled: Store, code: Path, environment: dict[str, str]) -> None:
    """Callers get EIO rather than nothing; the processor is not kept busy; it recovers when the cause goes. Where the
    kernel cannot repeat requests the mount is gone meanwhile, and made anew."""
    host.environment |= environment
    mount = host.mount(filled.path)
    supervisor = host.status(mount)["pid"]
    worker = code / "cvfs/mount/channel_worker.py"
    whole = worker.read_text()
    worker.write_text("raise RuntimeError('broken')\n")
    for pid in [*children(supervisor), *workers(supervisor_of(host, mount))]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "answers EIO" in host.log(), timeout_s=20)
    if not environment:
        with pytest.raises(OSError, match="Input/output error"):
            (mount / "d1/f1").read_bytes()
    assert host.log().count("RuntimeError: broken") < 10
    worker.write_text(whole)
    wait_until(lambda: _reads(mount / "d1/f1"), timeout_s=80)
    host.umount(mount)


@pytest.mark.parametrize("environment", [{}, {"CVFS_NO_RESEND": "1"}], ids=["repeats", "mounts anew"])
@pytest.mark.parametrize("count", [1, 2])
def test_code_that_starts_no_worker_is_replaced_once_it_is_mended(
    host: Host, filled: Store, code: Path, count: int, environment: dict[str, str]
) -> None:
    """It can be imported: the process that has done so would fork such workers for ever. No worker of the first slot,
    which would have to be asked for a reload."""
    host.environment |= environment
    mount = host.mount(filled.path, "--workers", str(count))
    supervisor = supervisor_of(host, mount)
    worker = code / "cvfs/mount/channel_worker.py"
    whole = worker.read_text()
    break_start(code, 0)
    assert host.cvfs("reload", mount, check=False).returncode == 1
    for pid in [*children(supervisor), *workers(supervisor)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: host.log().count("RuntimeError: broken") >= 4, timeout_s=20)
    worker.write_text(whole)
    wait_until(lambda: len(workers(supervisor)) == count and host.status(mount)["state"] == "ok", 80)
    wait_until(lambda: len(children(supervisor)) == 1)
    assert (mount / "d1/f1").read_bytes() == SMALL["d1/f1"]
    assert "cannot reload" not in host.log().rpartition("RuntimeError: broken")[2]
    assert host.status(mount)["reload_problem"] == ""  # the new code is there now
    host.umount(mount)


def test_storm_of_kills_before_a_bad_cache(host: Host, filled: Store) -> None:
    """Workers that are killed, whose successors find a cache that is not theirs: an error, never nothing; it heals."""
    mount = host.mount(filled.path)
    supervisor = supervisor_of(host, mount)
    os.chown(host.cache, 12345, -1)
    try:
        for _ in range(5):
            for pid in workers(supervisor):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        wait_until(lambda: "answers EIO" in host.log(), timeout_s=20)
        with pytest.raises(OSError, match="Input/output error"):
            (mount / "d1/f1").read_bytes()
        assert 3 <= host.log().count(f"a worker cannot start: the cache {host.cache} belongs to uid 12345") < 12
    finally:
        os.chown(host.cache, 0, -1)
    for path in host.cache.rglob("*"):
        if path.is_file() and random.random() < 0.5:
            path.write_bytes(random.randbytes(100))
    wait_until(lambda: _reads(mount / "d1/f1"), timeout_s=40)
    assert all((mount / name).read_bytes() == data for name, data in SMALL.items())
    host.umount(mount)


def _reads(path: Path) -> bool:
    try:
        return path.read_bytes() == SMALL["d1/f1"]
    except OSError:
        return False


def test_several_workers_share_a_fetch(host: Host, filled: Store, tmp_path: Path) -> None:
    with Server(filled.path, tmp_path) as server:
        mount = host.mount(server.url, "--workers", "2")
        wait_until(lambda: len(workers(supervisor_of(host, mount))) == 2)
        readers = [subprocess.Popen(["cat", *(mount / n for n in SMALL)], stdout=subprocess.DEVNULL) for _ in range(4)]
        assert [reader.wait(60) for reader in readers] == [0] * 4
        asked = server.requests()
        assert len(asked) == len(set(asked))
        host.umount(mount)


def test_each_worker_keeps_to_its_share_of_the_cpus(host: Host, filled: Store) -> None:
    """With all its threads, and also one that replaces another; the supervisor may run anywhere."""
    mount = host.mount(filled.path, "--workers", "2")
    supervisor = supervisor_of(host, mount)

    def shares() -> set[frozenset[int]]:
        with contextlib.suppress(OSError):  # one has ended meanwhile
            threads = [int(name) for pid in workers(supervisor) for name in os.listdir(f"/proc/{pid}/task")]
            return {frozenset(os.sched_getaffinity(thread)) for thread in threads}
        return set()

    whole = os.sched_getaffinity(0)
    expected = {frozenset(share(whole, slot, 2)) for slot in range(2)}
    wait_until(lambda: len(workers(supervisor)) == 2)
    wait_until(lambda: shares() == expected)
    kill(workers(supervisor)[0])
    wait_until(lambda: host.status(mount)["restarts"] == 1)
    wait_until(lambda: shares() == expected)
    assert os.sched_getaffinity(supervisor) == whole
    host.umount(mount)


def test_deaths_of_every_worker_are_counted_at_once(host: Host, filled: Store) -> None:
    """Only the first worker answers for the mount, and it is told of the others."""
    mount = host.mount(filled.path, "--workers", "2")
    supervisor = supervisor_of(host, mount)
    wait_until(lambda: len(workers(supervisor)) == 2)
    (other,) = set(workers(supervisor)) - {host.status(mount)["worker_pid"]}
    kill(other)
    wait_until(lambda: host.status(mount)["restarts"] == 1)
    host.umount(mount)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_signals_of_a_terminal_unmount(host: Host, filled: Store, number: signal.Signals) -> None:
    """They come to all processes of a mount in the foreground, as when the terminal is closed."""
    mount = host.new_directory()
    command = [*PYTHON, "-m", "cvfs", "mount", "-f", "--engine", "channel", filled.path, mount]
    process = subprocess.Popen(command, env=host.environment, stderr=subprocess.PIPE, process_group=0)
    wait_until(lambda: mounts_below(host.top) != [] and (mount / "run").exists())
    os.killpg(process.pid, number)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 0, errors
    assert mounts_below(host.top) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount fusectl")
def test_connection_that_is_aborted_leaves_no_dead_mount(host: Host, filled: Store, tmp_path: Path) -> None:
    mount = host.mount(filled.path, "--workers", "2")
    connection = os.minor(mount.stat().st_dev)
    control = tmp_path / "fusectl"
    control.mkdir()
    run("mount", "-t", "fusectl", "fusectl", control)
    try:
        (control / str(connection) / "abort").write_text("1")
    finally:
        run("umount", control)
    wait_until(lambda: (mounts_below(host.top), processes_of(host.top)) == ([], {}))


def test_request_that_kills_every_worker_gets_an_error(host: Host, filled: Store, code: Path) -> None:
    """As one for which there is not enough memory."""
    with (code / "cvfs/fuse/handlers.py").open("a") as handlers:
        handlers.write(POISON)
    mount = host.mount(filled.path)
    with pytest.raises(OSError, match="Input/output error"):
        os.listxattr(mount / "run")
    wait_until(lambda: _reads(mount / "d1/f1"))
    host.umount(mount)


POISON = """
def _answer(self, request, answer=Handlers.answer_nowait):
    if request.opcode == 23:  # LISTXATTR
        import os
        os.kill(os.getpid(), 9)
    return answer(self, request)
Handlers.answer_nowait = _answer
"""


def test_service_manager_hears_of_a_mount_that_some_of_its_workers_serve(
    host: Host, filled: Store, code: Path, tmp_path: Path
) -> None:
    break_start(code, slot=1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        host.environment |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        mount = host.mount(filled.path, "--workers", "2")
        wait_until(lambda: "worker cannot start" in host.log() or "died" in host.log())
        while manager.recv(1000) != b"WATCHDOG=1":
            pass
        assert _reads(mount / "d1/f1")
        host.umount(mount)


def test_kill_in_the_middle_of_a_write_to_the_cache(host: Host, store: Store, tree: Path, tmp_path: Path) -> None:
    """A worker is stopped between the beginning of a file and its name, and killed: nothing of that has the name."""
    files = {f"f{number}": random.Random(number).randbytes(3 << 20) for number in range(20)}
    for name, data in files.items():
        (tree / name).write_bytes(data)
    store.publish(tree)
    mount = host.mount(store.path)
    (pid,) = workers(supervisor_of(host, mount))
    unnamed = None
    while unnamed is None:  # a busy machine may not let this process look at any of the twenty
        host.cvfs("cache", "wipe", "--yes")
        kernel_caches.drop()
        with (tmp_path / "read").open("wb") as output:
            reader = subprocess.Popen(["cat", *(mount / name for name in files)], stdout=output)
        unnamed = _stop_while_writing(pid, host.cache / "packs", reader)
    kill(pid)
    assert unnamed.exists()
    assert reader.wait(60) == 0
    assert (tmp_path / "read").read_bytes() == b"".join(files.values())
    host.umount(mount)
    _check_cache(host.cache)


def _stop_while_writing(pid: int, directory: Path, reader: "subprocess.Popen[bytes]") -> Path | None:
    """Let a worker go on in the smallest steps until it has begun with a file, and not given it its name; that file.
    None: that was not seen before `reader` had read all."""
    while reader.poll() is None:
        os.kill(pid, signal.SIGSTOP)
        while _states(pid) != {"T"}:
            os.sched_yield()
        unnamed = _unnamed(directory)
        if unnamed:
            return directory / unnamed[0]
        os.kill(pid, signal.SIGCONT)
        while "T" in _states(pid):
            os.sched_yield()
    assert reader.returncode == 0
    return None


def _unnamed(directory: Path) -> list[str]:
    """Files that have no name yet. The directory is made for the first of them."""
    with contextlib.suppress(FileNotFoundError):
        return [name for name in os.listdir(directory) if name.startswith(".new-")]
    return []


def _states(pid: int) -> set[str]:
    """What the threads of a process do. One that has just ended does nothing."""
    found = set()
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            found.add(path.read_text().rpartition(")")[2].split()[0])
    return found
