"""cvfs cache, and what else fills the cache, on a host without a mount: what they say is so."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cache.disks import needs_root, remount, small_disk
from tests.command import Command
from tests.servers import FaultyServer
from tests.small_store import SmallStore, Tree

TREE: Tree = {b"a/one": b"one", b"a/two": b"two" * 1000, b"b/three": b"three"}


@pytest.fixture
def store(tmp_path: Path) -> SmallStore:
    (tmp_path / "store").mkdir()
    store = SmallStore(tmp_path / "store")
    store.publish(TREE)
    return store


@pytest.fixture
def server(store: SmallStore) -> Iterator[FaultyServer]:
    with FaultyServer(store.path) as server:
        yield server


def test_a_wipe_that_is_declined_removes_nothing(cvfs: Command, server: FaultyServer) -> None:
    cvfs.ok("prefetch", server.url, "-q")
    declined = subprocess.run(
        cvfs.line("cache", "wipe"), input=b"n\n", capture_output=True, check=False, env=cvfs.whole_environment
    )
    assert declined.returncode == 1
    assert declined.stderr.endswith(b"nothing was removed\n")
    assert b"error" not in declined.stderr
    assert b"fetched 0 bytes" in cvfs.ok("prefetch", server.url)


def test_names_of_what_is_pinned_cannot_upset_a_terminal(cvfs: Command, store: SmallStore) -> None:
    name = b"\x1b[2J\n\xff"
    store.publish({name + b"/file": b"file"})
    cvfs.ok("cache", "pin", store.path.as_uri(), name, "-q")
    (line,) = [line for line in cvfs.ok("cache", "info").splitlines() if line.startswith(b"pinned")]
    assert b"\\x1b[2J\\n\\xff of small.example.org: " in line


@needs_root
def test_what_is_in_a_read_only_cache_is_shown(cvfs: Command, server: FaultyServer) -> None:
    with small_disk(cvfs.cache, "64m"):
        cvfs.ok("prefetch", server.url, "-q")
        before = json.loads(cvfs.ok("cache", "info", "--json"))
        remount(cvfs.cache, "ro")
        outcome = cvfs("cache", "info", "--json")
        assert (outcome.returncode, json.loads(outcome.stdout)) == (0, before)
        assert all(line.startswith(b"cvfs: warning: ") for line in outcome.stderr.splitlines())


@pytest.mark.parametrize("is_configured", [True, False])
def test_what_is_pinned_is_unpinned_without_a_server(
    cvfs: Command, store: SmallStore, tmp_path: Path, *, is_configured: bool
) -> None:
    """By its address, and by its name, configured or not."""
    file = tmp_path / f"config/repositories.d/{store.name}.toml"
    file.parent.mkdir(parents=True)
    cvfs.environment["CVFS_CONFIG"] = str(tmp_path / "config")
    with FaultyServer(store.path) as server:
        file.write_text(f'url = "{server.url}/"\n')
        for path in ("a", "b", "/"):
            cvfs.ok("cache", "pin", store.name, path, "-q")
    shutil.rmtree(cvfs.state)  # nor is any revision known
    if not is_configured:
        file.unlink()
    begun = time.monotonic()
    cvfs.ok("cache", "unpin", server.url, "a")
    cvfs.ok("cache", "unpin", store.name, "b")
    assert "'a' of small.example.org is not pinned" in cvfs.refused("cache", "unpin", server.url, "a")
    cvfs.ok("cache", "unpin", f"{server.url}@7")
    assert not json.loads(cvfs.ok("cache", "info", "--json"))["pins"]
    assert time.monotonic() - begun < 20, "nobody was waited for"


def test_what_is_pinned_is_unpinned_by_another_address(cvfs: Command, store: SmallStore, server: FaultyServer) -> None:
    """Which only the repository itself can tell."""
    cvfs.ok("cache", "pin", server.url, "a", "-q")
    cvfs.ok("cache", "unpin", store.path, "a")
    assert "neither configured" in cvfs.refused("cache", "unpin", "unheard.of", "a")


def test_what_is_pinned_counts_by_what_it_takes_on_the_disk(cvfs: Command, store: SmallStore) -> None:
    """Five thousand files of five bytes take a block each; what is the same in many files is there once."""
    store.publish({b"a/%d" % number: b"%05d" % number for number in range(5000)})
    url, limit = store.path.as_uri(), ("--cache-limit", "16 MiB")
    assert "cannot pin 19." in cvfs.refused("cache", "pin", url, *limit)
    store.publish({b"b/%d" % number: bytes(4096) for number in range(5000)})
    cvfs.ok("cache", "pin", url, "-q", *limit)
    [pin] = json.loads(cvfs.ok("cache", "info", "--json"))["pins"]
    assert (pin["files"], pin["bytes"]) == (5000, 5000 * 4096)
    taken = [path.stat().st_blocks * 512 for kind in ("objects", "blobs") for path in cvfs.cache.glob(f"{kind}/??/*")]
    assert 4096 < pin["disk_bytes"] <= sum(taken)
