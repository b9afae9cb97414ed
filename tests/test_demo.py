"""The demo, with a part of the standard library instead of packages: it runs, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 90

pytestmark = [
    pytest.mark.skipif(not Path(sys.executable).with_name("cvfs").exists(), reason="cvfs is not installed here"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="no /dev/fuse"),
]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: each test leaves only the environment there, which takes longest to make."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture
def start(kept: Path) -> Iterator[Start]:
    """Start the demo; at the end it is made sure that nothing of it is left."""

    def start(*arguments: str) -> "subprocess.Popen[str]":
        argv = [sys.executable, str(ROOT / "demo" / "run.py"), "--small", "--kept", str(kept), *arguments]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    yield start
    subprocess.run([sys.executable, str(ROOT / "demo" / "run.py"), "--stop", "--kept", str(kept)], check=True)


def assert_nothing_is_left(kept: Path) -> None:
    assert str(kept) not in Path("/proc/self/mountinfo").read_text()
    assert not [command for command in commands() if str(kept).encode() in command]
    assert not {path.name for path in kept.iterdir()} & {"run", "mnt"}


def commands() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return found


def test_it_runs_from_the_mount_and_cleans_up(start: Start, kept: Path) -> None:
    output, problem = start().communicate(timeout=DEADLINE_S)
    assert not problem
    assert "not a single module from anywhere else" in output
    assert "make demo KEEP=1" in output
    assert_nothing_is_left(kept)


def test_kept_it_stays_mounted_until_it_is_stopped(start: Start, kept: Path) -> None:
    output, problem = start("--keep").communicate(timeout=DEADLINE_S)
    assert not problem
    assert "--stop" in output
    assert (kept / "mnt" / "program.py").is_file()
    start("--stop").communicate(timeout=DEADLINE_S)
    assert_nothing_is_left(kept)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_in_the_middle_it_cleans_up(start: Start, kept: Path, number: signal.Signals) -> None:
    demo = start()
    wait_until(lambda: os.path.ismount(kept / "mnt"))
    demo.send_signal(number)
    _, problem = demo.communicate(timeout=DEADLINE_S)
    assert demo.returncode in (130, 143)
    assert "Traceback" not in problem
    assert_nothing_is_left(kept)


def test_what_a_killed_run_left_is_removed_by_the_next(start: Start, kept: Path) -> None:
    demo = start()
    wait_until(lambda: os.path.ismount(kept / "mnt"))
    demo.kill()
    demo.communicate(timeout=DEADLINE_S)
    start("--stop").communicate(timeout=DEADLINE_S)
    assert_nothing_is_left(kept)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
