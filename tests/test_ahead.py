"""What `cvfs mount` begins before it has read its options: what it guesses, and what becomes of a wrong guess."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cvfs.mount.ahead import engine_in, is_foreground
from tests.command import Command, wait_until
from tests.small_store import SmallStore


@pytest.mark.parametrize(
    ("words", "engine"),
    [
        (["URL", "DIR"], "auto"),
        (["--engine", "pyfuse3", "URL", "DIR"], "pyfuse3"),
        (["URL", "DIR", "--engine=channel"], "channel"),
        (["URL", "DIR", "--engine"], ""),
    ],
)
def test_engine_is_guessed(words: list[str], engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CVFS_ENGINE", raising=False)
    assert engine_in(words) == engine


def test_engine_of_the_environment_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVFS_ENGINE", "pyfuse3")
    assert engine_in(["URL", "DIR"]) == "pyfuse3"


@pytest.mark.parametrize("word", ["-f", "--foreground", "-fo", "-fonofail"])
def test_foreground_is_seen(word: str) -> None:
    assert is_foreground(word)


@pytest.mark.parametrize("word", ["-onofail", "-o", "nofail", "f", "--file", "-", "--", "", "--no-foreground"])
def test_foreground_is_not_seen_where_it_is_not(word: str) -> None:
    assert not is_foreground(word)


def _python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)


_FORKS = """
import os, sys

def note(event, arguments):
    if event == "os.fork":
        os.write(1, " ".join(sorted(sys.modules)).encode() + b"\\n")

sys.addaudithook(note)
from cvfs.mount.ahead import begin
begin(["URL", "DIR", "--engine", "channel"])  # and let go at once: nothing is asked for
os.wait()
"""


def test_template_is_forked_before_its_supervisor_imports_anything() -> None:
    """It takes longest: what comes before it is paid for in full, what comes beside it is not."""
    server, template = _python(_FORKS).splitlines()
    assert template == server
    assert not {"click", "logging", "msgspec", "trio"} & {*template.split()}


def test_supervisor_imports_little() -> None:
    costly = ("click", "dataclasses", "inspect", "msgspec", "requests", "trio")
    code = f"import sys, cvfs.mount.server, cvfs.mount.channel_server; print([m for m in {costly} if m in sys.modules])"
    assert _python(code) == "[]\n"


needs_fuse = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")


@needs_fuse
@pytest.mark.parametrize(
    ("guessed", "engine", "processes"), [("auto", "pyfuse3", 1), ("pyfuse3", "channel", 3)], ids=["alone", "supervised"]
)
def test_wrong_guess(cvfs: Command, store: SmallStore, mnt: Path, guessed: str, engine: str, processes: int) -> None:
    """What an option in -o says is not seen ahead."""
    cvfs.ok("mount", store.path, mnt, "-o", f"engine={engine}", extra={"CVFS_ENGINE": guessed})
    assert cvfs.status(mnt)["engine"] == engine
    wait_until(lambda: len(cvfs.processes()) == processes)
    assert (mnt / "hello").read_bytes() == b"hello\n"
    cvfs.ok("umount", mnt)
    assert not cvfs.leftovers()


@needs_fuse
def test_what_is_not_asked_for_in_the_end_is_gone_with_the_command(cvfs: Command, store: SmallStore, mnt: Path) -> None:
    for wrong in (["--no-such-option"], ["-o", "nonsense"], ["--foreground", "-o", "nonsense"], ["--help"]):
        outcome = cvfs("mount", store.path, mnt, *wrong)
        assert (outcome.returncode == 0) == (wrong == ["--help"])
        assert not cvfs.leftovers()


@needs_fuse
def test_foreground_that_is_a_value(cvfs: Command, store: SmallStore, mnt: Path) -> None:
    assert "words of their own" in cvfs.refused("mount", store.path, mnt, "--log-file", "-f")


@needs_fuse
def test_process_that_was_started_serves_in_the_foreground(cvfs: Command, store: SmallStore, mnt: Path) -> None:
    """As a service manager wants it: signals go to it, and its exit status is that of the mount."""
    with cvfs.start("mount", "--foreground", store.path, mnt, stderr=subprocess.PIPE) as server:
        wait_until(mnt.is_mount)
        assert cvfs.status(mnt)["pid"] == server.pid
        wait_until(lambda: len(cvfs.processes()) == 3)  # the command has ended
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    assert not cvfs.leftovers()


@needs_fuse
@pytest.mark.parametrize("engine", ["channel", "pyfuse3"])
def test_failure_in_the_foreground(cvfs: Command, store: SmallStore, mnt: Path, engine: str) -> None:
    line = cvfs.refused("mount", "--foreground", "--engine", engine, store.path, mnt / "nowhere")
    assert "make it first" in line
    assert not cvfs.leftovers()


@needs_fuse
@pytest.mark.parametrize("engine", ["channel", "pyfuse3"])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(cvfs: Command, store: SmallStore, mnt: Path, closed: str, engine: str) -> None:
    """What is opened first must not get the number of one, and be closed where the server lets go of the terminal."""
    outcome = cvfs.closed(closed, "mount", "--engine", engine, store.path, mnt)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, b"", b"")
    assert (mnt / "hello").read_bytes() == b"hello\n"
    status = cvfs.status(mnt)
    streams = [os.readlink(f"/proc/{status['pid']}/fd/{number}") for number in range(3)]
    assert streams == ["/dev/null", status["log"], status["log"]]
    cvfs.ok("umount", mnt)
    outcome = cvfs.closed(closed, "mount", "--engine", engine, store.path, mnt / "nowhere")
    assert (outcome.returncode, b"make it first" in outcome.stderr) == (1, "2>" not in closed)
