"""cvfs prefetch, export and cache verify on a real terminal, and killed halfway: the next run brings the rest.

Each file of the store is a blob of its own, so the requests at the server tell which files were fetched, and how often.
"""

import fcntl
import os
import random
import re
import subprocess
from pathlib import Path

import pytest

from cvfs.format.blob import blob_path, seal
from tests import servers
from tests.command import DEADLINE_S, Command, wait_until
from tests.servers import Exchange, FaultyServer
from tests.small_store import Tree
from tests.terminal import COLUMNS, on_terminal

_CHANCE = random.Random(7)
FILES = {b"%d/%d" % (number % 5, number): _CHANCE.randbytes(100_000 + number) for number in range(60)}
BLOBS = {f"/{blob_path(seal(data)[0].id)}": path for path, data in FILES.items()}
"""The path of a request, and the path of the file that it brings."""

HALF = 25
SLOW_S = 0.1
COMMANDS = ("prefetch", "export")


@pytest.fixture
def published() -> list[Tree]:
    return [FILES]


def _arguments(command: str, server: FaultyServer, out: Path) -> list[str | Path]:
    return [command, server.url, *(("/", out) if command == "export" else ())]


def _on_terminal(cvfs: Command, *arguments: str | Path) -> str:
    return on_terminal(cvfs.line(*arguments), cvfs.whole_environment)


def _shown(written: str) -> str:
    """What a bar said, in all its states; it stayed within a line, and has gone from it."""
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)
    assert max(map(len, re.split(r"[\r\n]+", shown))) <= COLUMNS
    assert "\x1b[2K" in written
    assert "━" not in written.rpartition("\x1b[2K")[2], "the bar has gone, nothing is left in its line"
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l"), "the cursor is back"
    return shown


@pytest.mark.parametrize(("command", "doing"), [("prefetch", "Fetching"), ("export", "Exporting")])
def test_files_bytes_rate_and_time_left_on_a_terminal(
    cvfs: Command, server: FaultyServer, command: str, doing: str
) -> None:
    server.misbehave(_slowly)
    shown = _shown(_on_terminal(cvfs, *_arguments(command, server, cvfs.top / "out")))
    assert re.search(doing + r" \S+ +\d+ files?, [\d.]+ MiB, [\d.]+ [KM]iB/s, 0:00:\d\d left", shown), shown
    assert f"{len(FILES)} files" in shown


def _slowly(exchange: Exchange) -> None:
    """As a server that is far away."""
    exchange.stopping.wait(SLOW_S)
    servers.behave(exchange)


def test_verify_on_a_terminal(cvfs: Command, server: FaultyServer) -> None:
    cvfs.ok("prefetch", server.url, "-q")
    written = _on_terminal(cvfs, "cache", "verify")
    assert re.search(r"Verifying \S+ +\d+ files?, ", _shown(written))
    assert written.rpartition("\x1b[2K")[2].strip().endswith("all well")


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_no_bar_from_verify_if_the_outcome_is_for_programs(cvfs: Command, server: FaultyServer, option: str) -> None:
    cvfs.ok("prefetch", server.url, "-q")
    assert "\x1b" not in _on_terminal(cvfs, "cache", "verify", option)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_bar_if_it_is_not_wanted(cvfs: Command, server: FaultyServer, command: str) -> None:
    assert _on_terminal(cvfs, *_arguments(command, server, cvfs.top / "out"), "--quiet") == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_what_was_killed_halfway_brings_only_the_rest(cvfs: Command, server: FaultyServer, command: str) -> None:
    """A prefetch finds it in the cache; an export, with a cache that is empty again, where it copied to."""
    out = cvfs.top / "out"
    answered = _kill_halfway(cvfs, server, command, out)
    before = server.requests.copy()
    server.recover()
    cache = cvfs.cache if command == "prefetch" else cvfs.top / "empty"
    cvfs.ok(*_arguments(command, server, out), "--quiet", extra={"CVFS_CACHE": str(cache)})
    asked = {path for path in BLOBS if server.requests[path] > before[path]}
    assert asked == BLOBS.keys() - answered
    if command == "export":
        copied = {os.fsencode(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert copied == FILES, "and nothing that was not completed"
    else:
        server.misbehave(servers.status("503 Down"))
        assert cvfs("cat", server.url, *FILES).stdout == b"".join(FILES.values())


def test_an_export_brings_nothing_but_what_it_lacks(cvfs: Command, server: FaultyServer) -> None:
    """Not what stands behind it in the tree either, as for a reader of one file after the other."""
    out = cvfs.top / "out"
    cvfs.ok(*_arguments("export", server, out), "--quiet")
    paths = sorted(FILES)
    lacking = {path for number, path in enumerate(paths) if number % 4 != 3}
    for path in lacking:
        (out / os.fsdecode(path)).unlink()
    before = server.requests.copy()
    cvfs.ok(*_arguments("export", server, out), "--quiet", extra={"CVFS_CACHE": str(cvfs.top / "empty")})
    assert {BLOBS[path] for path in BLOBS if server.requests[path] > before[path]} == lacking


def test_export_leaves_what_another_writes(cvfs: Command, server: FaultyServer) -> None:
    out = cvfs.top / "out"
    (out / "1").mkdir(parents=True)
    mine, left = (out / f"1/.cvfs-{digit * 16}-1" for digit in "01")
    left.touch()
    (out / "1/.cvfs-mine").touch()
    with open(mine, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cvfs.ok(*_arguments("export", server, out), "--quiet")
    assert sorted(path.name for path in out.rglob(".*")) == [mine.name, ".cvfs-mine"]


def _kill_halfway(cvfs: Command, server: FaultyServer, command: str, out: Path) -> set[str]:
    """Answer `HALF` requests for files and no other, and kill it once it has kept these; which they were."""
    answered: set[str] = set()

    def half(exchange: Exchange) -> None:
        if exchange.path in BLOBS and len(answered) >= HALF:
            exchange.hang()
            return
        answered.update({exchange.path} & BLOBS.keys())
        servers.behave(exchange)

    server.misbehave(half)
    with cvfs.start(*_arguments(command, server, out), "--quiet", stderr=subprocess.PIPE) as process:
        wait_until(lambda: len(answered) == HALF and _kept(cvfs, command, out) == HALF, DEADLINE_S)
        server.wait_until(lambda: sum(server.requests[path] for path in BLOBS) > HALF)
        process.kill()
    return answered


def _kept(cvfs: Command, command: str, out: Path) -> int:
    """How many whole files there are."""
    sizes = {len(data) for data in FILES.values()}
    paths = (out if command == "export" else cvfs.cache / "objects").rglob("*")
    return sum(path.is_file() and not path.name.startswith(".") and path.stat().st_size in sizes for path in paths)
