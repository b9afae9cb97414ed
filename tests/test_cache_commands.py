"""cvfs cache, and what else fills the cache, on a host without a mount: what they say is so."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.cache.disks import needs_root, remount, small_disk
from tests.command import Command
from tests.e2e.host import Store, trust
from tests.e2e.zoo import content
from tests.servers import FaultyServer
from tests.small_store import SmallStore, Tree

TREE: Tree = {b"a/one": b"one", b"a/two": b"two" * 1000, b"b/three": b"three"}


@pytest.fixture
def published() -> list[Tree]:
    return [TREE]


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


MIB = 1 << 20


def test_paths_below_one_another_are_counted_once(cvfs: Command, store: SmallStore) -> None:
    """Each takes nearly two thirds of what may be pinned."""
    store.publish({b"a/b/%d" % number: b"%d" % number for number in range(1000)})
    url, limit = store.path.as_uri(), ("--cache-limit", "9 MB")
    assert b"1,000 files" in cvfs.ok("cache", "pin", url, "a", *limit)
    cvfs.ok("cache", "unpin", url, "a")
    cvfs.ok("cache", "pin", url, "a", "a/b", *limit)


@pytest.fixture
def chunked(cvfs: Command, tmp_path: Path) -> str:
    """The address of a store with a file of many chunks, and small files of 3.2 MB."""
    cvfs.environment["CVFS_ROOT"] = str(trust().root)
    (tmp_path / "tree/small").mkdir(parents=True)
    (tmp_path / "tree/large").write_bytes(content(12 * MIB))
    for number in range(200):
        (tmp_path / f"tree/small/{number}").write_bytes(content(16_000 + number))
    store = Store(tmp_path / "chunked")
    store.publish(tmp_path / "tree")
    return store.path.as_uri()


@pytest.mark.parametrize("what", ["large", "small", "/"])
def test_what_is_larger_than_the_cache_is_not_prefetched(cvfs: Command, chunked: str, what: str) -> None:
    """Its own files would push each other out, and first what others need. That is known before any is fetched."""
    cvfs.environment["CVFS_CACHE_LIMIT"] = "4 MB"
    told = cvfs.refused("prefetch", chunked, what, "--json")
    assert "no room for" in told
    assert "raise cache_limit" in told
    assert not [*cvfs.cache.glob("packs/??/*"), *cvfs.cache.glob("large/??/*")]
    cvfs.environment["CVFS_CACHE_LIMIT"] = "40 MiB"
    report = json.loads(cvfs.ok("prefetch", chunked, what, "--json"))
    assert (report["uncached"], report["uncached_bytes"]) == (0, 0)
    assert report["files"] == {"large": 1, "small": 200, "/": 201}[what]


def test_what_finds_no_room_beside_pins_is_told(cvfs: Command, chunked: str) -> None:
    cvfs.environment["CVFS_CACHE_LIMIT"] = "20 MiB"
    cvfs.ok("cache", "pin", chunked, "large", "-q")
    [large] = cvfs.cache.glob("large/??/*")
    cvfs.environment["CVFS_CACHE_LIMIT"] = "14 MiB"
    outcome = cvfs("prefetch", chunked, "small", "--json")
    report = json.loads(outcome.stdout)
    assert outcome.returncode == 1
    assert report["uncached"] == 200 - report["files"] > 100
    assert report["uncached_bytes"] > 100 * 16_000
    *_, told = outcome.stderr.decode().splitlines()
    assert told.startswith(f"cvfs: error: {report['uncached']} files of 200, ")
    assert "not in the cache" in told
    assert large.exists()


@needs_root
def test_a_large_file_is_not_there_if_part_of_it_is_missing(cvfs: Command, chunked: str) -> None:
    hole = ("--punch-hole", "--offset", str(5 * MIB), "--length", str(3 * MIB))
    with small_disk(cvfs.cache, "64m"):
        cvfs.ok("prefetch", chunked, "-q")
        [large] = cvfs.cache.glob("large/??/*")
        subprocess.run(["fallocate", *hole, large], check=True)
        assert json.loads(cvfs.ok("prefetch", chunked, "large", "--json"))["fetched_blobs"] > 0
        subprocess.run(["fallocate", *hole, large], check=True)
        remount(cvfs.cache, "ro")
        assert b"cannot be written" in cvfs("prefetch", chunked, "large").stderr


@needs_root
def test_a_read_only_cache_cannot_be_filled(cvfs: Command, store: SmallStore) -> None:
    url = store.path.as_uri()
    with small_disk(cvfs.cache, "64m"):
        cvfs.ok("prefetch", url, "a", "-q")
        remount(cvfs.cache, "ro")
        told = cvfs("prefetch", url, "--json")
        assert (told.returncode, told.stdout) == (1, b"")
        assert b"cannot be written" in told.stderr.splitlines()[-1]
        assert json.loads(cvfs("prefetch", url, "a", "--json").stdout)["uncached"] == 0, "there already"


def test_a_limit_that_is_too_small_is_refused(cvfs: Command, store: SmallStore) -> None:
    cvfs.environment["CVFS_CACHE_LIMIT"] = "1 MB"
    for command in (("prefetch", store.path.as_uri()), ("cache", "info"), ("ls", store.path.as_uri())):
        told = cvfs.refused(*command)
        assert told == "a cache_limit of 1,000,000 bytes is too small to keep anything: make it 4 MB or more"
    findings = {each["test"]: each for each in json.loads(cvfs("doctor", "--json").stdout)["findings"]}
    assert (findings["space"]["state"], findings["space"]["says"]) == ("failed", told)


def test_what_is_small_but_not_refused_keeps_something(cvfs: Command, store: SmallStore) -> None:
    store.publish({b"%d" % number: b"%05d" % number * 800 for number in range(400)})
    cvfs.environment["CVFS_CACHE_LIMIT"] = "4 MB"
    report = json.loads(cvfs.ok("prefetch", store.path.as_uri(), "--json"))
    assert (report["files"], report["uncached"]) == (400, 0)


def test_the_limit_is_never_negative(cvfs: Command, store: SmallStore, tmp_path: Path) -> None:
    """Of a small disk a share may be less than the inode index takes."""
    cvfs.ok("prefetch", store.path.as_uri(), "-q")
    cvfs.environment["CVFS_CACHE_LIMIT"] = "0.0001 %"
    assert json.loads(cvfs.ok("cache", "info", "--json"))["limit_bytes"] == 0
    assert b"of 0 bytes" in cvfs.ok("cache", "info")


def test_a_disk_that_has_no_room_is_told(cvfs: Command, store: SmallStore) -> None:
    """It keeps nothing: all mounts work, and are slow."""
    cvfs.environment["CVFS_KEEP_FREE"] = "900 TB"
    info = cvfs.ok("cache", "info").decode()
    assert "less than the" in info
    assert "nothing more is cached" in info
    assert json.loads(cvfs.ok("cache", "info", "--json"))["gives_way"] is True
    findings = {each["test"]: each for each in json.loads(cvfs("doctor", "--json").stdout)["findings"]}
    assert findings["space"]["state"] == "warning"
    assert "nothing more is cached" in findings["space"]["says"]
    assert "lower keep_free" in findings["space"]["remedy"]


@needs_root
def test_a_mount_whose_disk_has_no_room_says_so(cvfs: Command, store: SmallStore) -> None:
    (cvfs.top / "mnt").mkdir()
    cvfs.ok("mount", store.path, cvfs.top / "mnt", "--keep-free", "900 TB")
    assert b"no room on disk" in cvfs.ok("status")
    assert cvfs.status(cvfs.top / "mnt")["cache"]["gives_way"] is True
    cvfs.ok("umount", cvfs.top / "mnt")
