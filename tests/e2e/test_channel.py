"""The channel at the kernel: what causes no message, what is cut short, what hangs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.host import Host, Store, run, stopped, wait_until
from tests.servers import Exchange, FaultyServer, behave, hang


@pytest.fixture(scope="module")
def engine() -> str:
    return "channel"


@pytest.fixture
def filled(store: Store, tree: Path) -> Store:
    (tree / "d").mkdir()
    for number in range(20):
        (tree / f"d/f{number}").write_bytes(b"%d" % number * 3000)
    (tree / "link").symlink_to("d/f1")
    store.publish(tree)
    return store


def read(path: Path) -> bytes:
    """Not by open(), which asks whether it is a terminal: the kernel passes every ioctl(2) on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 1 << 20)
    finally:
        os.close(descriptor)


def use(mount: Path) -> None:
    for path in (mount / "d").iterdir():
        path.stat()
        assert read(path)[:1].isdigit()
        assert not path.with_name(path.name + "x").exists()
    os.readlink(mount / "link")
    os.listdir(mount)


@pytest.mark.usefixtures("kept_kernel_caches")
def test_hot_paths_send_no_message(host: Host, filled: Store) -> None:
    mount = host.mount(filled.path)
    for _ in range(2):
        use(mount)
    before = host.status(mount)["requests"]
    for _ in range(3):
        use(mount)
    assert host.status(mount)["requests"] == before
    assert before["OPENDIR"] == 1
    assert before["OPEN"] == 1
    host.umount(mount)


@pytest.mark.parametrize("direct", [False, True])
def test_interrupted_reader_of_a_server_that_hangs_returns_at_once(host: Host, filled: Store, direct: bool) -> None:
    with FaultyServer(filled.path) as server:
        mount = host.mount(server.url)
        os.listdir(mount / "d")
        server.misbehave(hang)
        # The kernel does not interrupt a buffered read; but it lets those go who die of the signal.
        command = ["dd", f"if={mount}/d/f1", "of=/dev/null", "iflag=direct"] if direct else ["cat", mount / "d/f1"]
        reader = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: "READ" in host.status(mount)["requests"])
        started = time.monotonic()
        reader.send_signal(signal.SIGINT)
        assert reader.wait(10) in (-signal.SIGINT, 130)
        assert time.monotonic() - started < 2
        assert len(os.listdir(mount / "d")) == 20
        if direct:
            assert host.status(mount)["requests_interrupted"] == 1
        server.recover()
        host.umount(mount, "--lazy")


SIGNALLED = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
for path in sys.argv[1:]:
    failed = libc.access(os.fsencode(path), os.R_OK)
    print(os.strerror(ctypes.get_errno()) if failed else "there", flush=True)
signal.setitimer(signal.ITIMER_REAL, 0)  # at its end Python gives up the handler, and the signal would kill it
"""


def test_signals_that_a_program_catches_fail_no_call(host: Host, store: Store, tree: Path) -> None:
    """As on a local file system. One that is told to end while it gets them ends soon."""
    (tree / "many").mkdir()
    for number in range(20_000):
        (tree / f"many/{number:05}").touch()
    store.publish(tree)

    def late(exchange: Exchange) -> None:
        exchange.stopping.wait(0.3)
        behave(exchange)

    with FaultyServer(store.path) as server:
        mount = host.mount(server.url)
        server.misbehave(late)
        words = [sys.executable, "-c", SIGNALLED]
        names = [mount / "many" / name for name in ("19999", "10000", "nothing")]
        assert run(*words, *names).stdout == b"there\nthere\nNo such file or directory\n"
        assert host.status(mount)["requests"]["INTERRUPT"] > 0
        host.remount(mount, server.url, "--cache", host.new_directory())
        server.misbehave(hang)
        with subprocess.Popen([*words, mount / "many/15000"], stdout=subprocess.DEVNULL) as hung:
            wait_until(lambda: "INTERRUPT" in host.status(mount)["requests"])
            started = time.monotonic()
            hung.terminate()
            assert hung.wait(10) == -signal.SIGTERM
            assert time.monotonic() - started < 2
        server.recover()
        host.umount(mount, "--lazy")


def test_an_interrupt_that_another_worker_reads_ends_the_request(host: Host, filled: Store) -> None:
    """The kernel gives an INTERRUPT to whichever worker reads first."""
    with FaultyServer(filled.path) as server:
        mount = host.mount(server.url, "--workers", "2")
        os.listdir(mount / "d")
        server.misbehave(hang)
        first, second = workers(host, mount)
        command = ["dd", f"if={mount}/d/f1", "of=/dev/null", "iflag=direct"]
        with stopped(first):
            server.requests.clear()
            reader = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            wait_until(lambda: any(path.startswith("/data/") for path in server.requests))
        with stopped(second):
            reader.send_signal(signal.SIGINT)
            wait_until(lambda: "INTERRUPT" in host.status(mount)["requests"])
            assert reader.poll() is None
        assert reader.wait(5) == -signal.SIGINT
        server.recover()
        host.umount(mount, "--lazy")


def workers(host: Host, mount: Path) -> tuple[int, int]:
    """The processes of the two workers, first the one whose counts the status shows."""
    first = host.status(mount)["worker_pid"]
    template = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    both = Path(f"/proc/{template}/task/{template}/children").read_text().split()
    [second] = {int(pid) for pid in both} - {first}
    return first, second
