"""Revisions on a real mount: new ones come by themselves or on demand, bad ones do not, and a pinned mount stays."""

import json
import random
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cvfs.config import Settings
from cvfs.format.blob import blob_path
from cvfs.mount.refresher import Refresher
from cvfs.trust.names import TIMESTAMP
from tests import servers
from tests.command import Command, wait_until
from tests.servers import FaultyServer
from tests.small_store import SmallStore
from tests.trust.test_threats import Repository

HEAD = f"/{TIMESTAMP}"
INTERVAL_S = 0.4


@pytest.fixture
def cvfs(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    (tmp_path / "mnt").mkdir()
    yield command
    command.clean_up()


def test_revisions_come_by_themselves_and_bad_ones_do_not(cvfs: Command, tmp_path: Path) -> None:
    """One mount, with the timer alone: nobody asks for anything."""
    (tmp_path / "store").mkdir()
    store, mnt = SmallStore(tmp_path / "store"), tmp_path / "mnt"
    store.publish({b"file": b"one", b"gone": b""})
    with FaultyServer(store.path) as server:
        cvfs.ok("mount", "--refresh", str(INTERVAL_S), server.url, mnt)
        assert (mnt / "file").read_bytes() == b"one"
        asks_conditionally(server)

        store.publish({b"file": b"two"})
        wait_until(lambda: (mnt / "file").read_bytes() == b"two")
        assert not (mnt / "gone").exists()

        root = store.publish({b"file": b"three"}).root
        bad = f"/{blob_path(root.id)}"
        server.misbehave(servers.flip(3), bad)
        stays(cvfs, mnt, b"two", "wrong bytes")
        server.misbehave(servers.status("404 Not Found"), bad)
        stays(cvfs, mnt, b"two", "404")
        server.misbehave(servers.flip(200), HEAD)
        stays(cvfs, mnt, b"two", "cannot trust")
        server.misbehave(servers.html, HEAD)
        stays(cvfs, mnt, b"two", "web page")
        (said,) = re.findall("wrong bytes.*going on with revision 2", cvfs.log())
        assert said
        server.recover()
        cvfs.ok("refresh", mnt)
        assert (mnt / "file").read_bytes() == b"three"
        assert cvfs.status(mnt)["state"] == "ok"
        assert "answers again" in cvfs.log()
        cvfs.ok("umount", mnt)


def asks_conditionally(server: FaultyServer) -> None:
    """A refresh without news: one request with an ETag, and an answer without a body."""
    count = server.requests[HEAD]
    server.wait_until(lambda: server.requests[HEAD] >= count + 3)
    before, sent_bytes = sum(server.requests.values()), server.sent_bytes[HEAD]
    server.wait_until(lambda: server.requests[HEAD] >= count + 5)
    assert sum(server.requests.values()) - before <= 3
    assert server.sent_bytes[HEAD] - sent_bytes < 200
    assert all("if-none-match" in one.headers for one in server.seen[-2:])


def stays(cvfs: Command, mnt: Path, content: bytes, problem: str) -> None:
    """The mount goes on with what it has, and says why."""
    assert problem in cvfs.refused("refresh", mnt)
    outcome = cvfs("status", mnt, "--json")
    assert outcome.returncode == 1
    (status,) = json.loads(outcome.stdout)["mounts"]
    assert (status["revision"], status["state"]) == (2, "offline")
    assert problem in status["problem"]
    assert (mnt / "file").read_bytes() == content


def test_the_timer_is_jittered(tmp_path: Path) -> None:
    """A minute give or take a quarter, so that hosts which started together do not ask together."""

    class Asked(BaseException):
        """What no refresh survives."""

    asked: list[float] = []

    class Heads:
        head, problem, is_expired = None, "", False

        async def current(self, *_: float) -> Any:
            asked.append(trio.current_time())
            if len(asked) == 100:
                raise Asked
            return type("Known", (), {"problem": "nothing new"})

    class Client:
        heads, url = Heads(), "http://test"
        mirrors = type("Mirrors", (), {"network": type("Network", (), {"listeners": []})})

    refresher = Refresher(Client(), None, Settings(), None, None, None)  # type: ignore[arg-type]
    random.seed(1)
    with pytest.raises(Asked):
        trio.run(refresher.run, clock=trio.testing.MockClock(autojump_threshold=0))
    assert asked[0] == 0  # at once, where no head is known: nobody can say for how long what is shown is signed
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert all(45 <= gap <= 75 for gap in gaps)
    assert max(gaps) - min(gaps) > 20
    assert 55 < sum(gaps) / len(gaps) < 65


def test_a_pinned_mount_stays_and_says_so(cvfs: Command, tmp_path: Path) -> None:
    """By every way to say it; with the publisher's own commands, and tags that move meanwhile."""
    repository, mnt = Repository(tmp_path), tmp_path / "mnt"
    store = repository.store
    began_s = int(time.time()) - 6 * 86_400
    repository.ok("init", store, "--name", "pins.example.org", SOURCE_DATE_EPOCH=str(began_s))
    for content in ("one", "two", "three"):
        repository.publish(content, SOURCE_DATE_EPOCH=str(began_s + len(content) * 86_400))
    repository.ok("tag", store, "stable", "1")
    root = ("--root", repository.keys / "root.json")

    def cat(*arguments: str | Path) -> bytes:
        return cvfs.ok("cat", *root, *arguments, "file")

    assert cat(f"{store}@stable") == b"one"
    assert cat("--revision", "2", store) == b"two"
    date = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(began_s + 4.5 * 86_400))
    assert cat("--date", date, store) == b"two"
    assert cvfs.ok("ls", *root, f"{store}@0") == b""
    cvfs.ok("cp", *root, f"{store}@1", "file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"one"
    refused = cvfs.refused("mount", *root, f"{store}@v9", mnt)
    assert refused == "pins.example.org has no tag 'v9': there are stable"

    cvfs.ok("mount", *root, "--refresh", "0.2", f"{store}@stable", mnt)
    status = cvfs.status(mnt)
    assert (status["revision"], status["pinned"], status["pinned_to"]) == (1, True, "tag 'stable'")
    assert "is pinned to tag 'stable'" in cvfs.refused("refresh", mnt)
    repository.ok("tag", store, "stable", "--move")
    repository.publish("four")
    count = cvfs.status(mnt)["refreshes"]
    wait_until(lambda: cvfs.status(mnt)["refreshes"] > count + 2)
    assert (mnt / "file").read_bytes() == b"one"
    assert cvfs.status(mnt)["trust"]["newest_revision"] == 4
    assert cat(f"{store}@stable") == b"three"
    cvfs.ok("umount", mnt)

    away = store.rename(tmp_path / "away")
    store.mkdir()
    assert cvfs("mount", *root, f"{store}@stable", mnt, "--known-deadline", "0.2").returncode == 0
    assert (mnt / "file").read_bytes() == b"three"
    cvfs.ok("umount", mnt)
    store.rmdir()
    away.rename(store)
