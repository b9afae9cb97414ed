"""`cvfs reload`: all workers of a mount go on with other code, or none does, and the command says which."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cvfs.mount.runtime import Runtime, ask
from tests.e2e.host import PYTHON, Host, Store, error_line, kill, run, wait_until
from tests.e2e.supervised import SMALL, break_start, children, copy_code, fill, supervisor_of, workers
from tests.servers import FaultyServer, hang


@pytest.fixture(scope="module")
def engine() -> str:
    """Only the channel has a supervisor."""
    return "channel"


@pytest.fixture
def filled(store: Store, tree: Path) -> Store:
    fill(store, tree)
    return store


@pytest.fixture
def code(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code, which the commands of the host use; it can be broken."""
    monkeypatch.chdir("/")
    return copy_code(host, tmp_path)


@pytest.mark.parametrize("slot", [0, 1])
def test_code_that_does_not_start_in_one_worker_is_used_by_none(
    host: Host, filled: Store, code: Path, slot: int
) -> None:
    mount = host.mount(filled.path, "--workers", "2")
    supervisor = supervisor_of(host, mount)
    wait_until(lambda: len(workers(supervisor)) == 2)
    before = set(workers(supervisor))
    break_start(code, slot)
    assert "the new worker did not start" in error_line(host.cvfs("reload", mount, check=False))
    wait_until(lambda: set(workers(supervisor)) == before)
    assert host.status(mount)["generation"] == 0
    assert (mount / "d1/f1").read_bytes() == SMALL["d1/f1"]
    host.umount(mount)


def test_reload_waits_for_a_worker_that_is_being_started(host: Host, filled: Store, code: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    break_start(code, 1, f"\n        while os.path.exists({str(gate)!r}): os.sched_yield()")
    mount = host.mount(filled.path, "--workers", "2")
    supervisor = supervisor_of(host, mount)
    wait_until(lambda: len(workers(supervisor)) == 2)
    (other,) = set(workers(supervisor)) - {host.status(mount)["worker_pid"]}
    gate.touch()
    kill(other)
    wait_until(lambda: len(workers(supervisor)) == 2)
    with subprocess.Popen([*PYTHON, "-m", "cvfs", "reload", mount], env=host.environment) as reload:
        wait_until(lambda: "the reload waits" in host.log())
        gate.unlink()
        assert reload.wait(30) == 0
    assert host.status(mount)["generation"] == 1
    host.umount(mount)


def test_control_socket_that_is_made_anew_meanwhile_is_answered(
    host: Host, filled: Store, code: Path, tmp_path: Path
) -> None:
    """By the new worker, which was begun with the one before."""
    gate = tmp_path / "gate"
    break_start(code, 0, f"\n        while os.path.exists({str(gate)!r}): os.sched_yield()")
    mount = host.mount(filled.path, "--refresh", "1")
    supervisor = supervisor_of(host, mount)
    (former,) = workers(supervisor)
    path = Runtime(Path(host.environment["CVFS_RUNTIME_DIR"])).socket_of(mount)
    gate.touch()
    with subprocess.Popen([*PYTHON, "-m", "cvfs", "reload", mount], env=host.environment) as reload:
        wait_until(lambda: len(workers(supervisor)) == 2)
        path.unlink()
        wait_until(path.exists)
        gate.unlink()
        assert reload.wait(30) == 0
    wait_until(lambda: former not in workers(supervisor))
    status = ask(path, "status")
    assert (status["generation"], status["worker_pid"]) == (1, *workers(supervisor))
    host.umount(mount)
    wait_until(lambda: not list(path.parent.iterdir()))


def test_newer_code_may_say_more_than_the_supervisor_knows(host: Host, filled: Store, code: Path) -> None:
    mount = host.mount(filled.path)
    supervisor = supervisor_of(host, mount)
    break_start(code, 0, "orders.say('of a later version')")
    host.cvfs("reload", mount)
    assert (supervisor_of(host, mount), host.status(mount)["generation"]) == (supervisor, 1)
    host.umount(mount)


def test_interpreter_that_is_gone(host: Host, filled: Store, tmp_path: Path) -> None:
    """As after its virtual environment was moved. Whoever serves goes on; once nobody does, callers get an error."""
    environment = tmp_path / "venv"
    environment.symlink_to(sys.prefix)
    mount = host.new_directory()
    interpreter = environment / "bin/python"
    run(interpreter, "-m", "cvfs", "mount", "--engine", "channel", filled.path, mount, env=host.environment)
    supervisor = supervisor_of(host, mount)
    before = workers(supervisor)
    environment.unlink()
    assert "No such file" in error_line(host.cvfs("reload", mount, check=False))
    assert (mount / "d1/f1").read_bytes() == SMALL["d1/f1"]
    assert workers(supervisor) == before
    for pid in [*before, *children(supervisor)]:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "answers EIO" in host.log(), 20)
    with pytest.raises(OSError, match="Input/output error"):
        (mount / "d0/f0").read_bytes()
    environment.symlink_to(sys.prefix)
    wait_until(lambda: _reads(mount), 40)
    host.cvfs("reload", mount)
    assert supervisor_of(host, mount) == supervisor
    host.umount(mount)


def _reads(mount: Path) -> bool:
    try:
        return (mount / "d0/f0").read_bytes() == SMALL["d0/f0"]
    except OSError:
        return False


def test_interrupt_reaches_the_worker_that_is_being_replaced(host: Host, filled: Store) -> None:
    """It answers what it has begun, its successor reads what the kernel says of that. Without RESEND it has time."""
    host.environment |= {"CVFS_NO_RESEND": "1"}
    with FaultyServer(filled.path) as server:
        mount = host.mount(server.url, "--deadline", "60")
        (mount / "large").stat()
        server.misbehave(hang)
        reader = subprocess.Popen(["dd", f"if={mount}/large", "of=/dev/null", "iflag=direct"], stderr=subprocess.PIPE)
        wait_until(lambda: host.status(mount)["requests_waited"] > 0)
        host.cvfs("reload", mount)
        reader.send_signal(signal.SIGINT)
        reader.communicate(timeout=15)
        assert reader.returncode in (-signal.SIGINT, 130)
        server.recover()
        wait_until(lambda: len(workers(supervisor_of(host, mount))) == 1)
        assert "mounting anew" not in host.log()
        host.umount(mount)
