"""cvfs prefetch and cvfs export: trees brought into the cache, and out of the repository, whole or bit by bit."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from cvfs.errors import PathError
from cvfs.trees.tally import Tally
from tests import servers
from tests.command import Command
from tests.servers import FaultyServer
from tests.small_store import MTIME_NS, SmallStore, Tree

LARGE = bytes(range(256)) * 40_000  # three chunks or so
TREE: Tree = {
    b"a/small": b"small\n",
    b"a/deep/er/file": b"deep",
    b"a/link": "small",
    b"a/nothing": None,
    b"large": LARGE,
    b"empty": b"",
    b"\xff\n": b"odd",
}


@pytest.fixture
def published() -> list[Tree]:
    return [TREE]


def _json(output: bytes) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(output)
    return report


def test_prefetched_files_are_read_without_a_server(cvfs: Command, server: FaultyServer) -> None:
    report = _json(cvfs.ok("prefetch", server.url, "--json"))
    assert (report["files"], report["failed"]) == (5, 0)
    assert report["size_bytes"] == sum(len(data) for data in TREE.values() if isinstance(data, bytes))
    server.misbehave(servers.status("503 Down"))
    files = {path: data for path, data in TREE.items() if isinstance(data, bytes)}
    assert cvfs("cat", server.url, *files).stdout == b"".join(files.values())


def test_prefetch_fetches_what_is_lacking_alone(cvfs: Command, server: FaultyServer) -> None:
    first = _json(cvfs.ok("prefetch", server.url, "a", "--json"))
    assert first["files"] == 2
    assert first["fetched_bytes"] > 0
    assert _json(cvfs.ok("prefetch", server.url, "a/small", "a/deep", "--json"))["fetched_blobs"] == 0
    assert cvfs.ok("prefetch", server.url, "a", "-q") == b""


def test_prefetch_of_paths_below_a_mount(cvfs: Command, server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "link").symlink_to("mnt")
    cvfs.ok("mount", server.url, tmp_path / "mnt")
    for mount in (tmp_path / "mnt", tmp_path / "link"):
        report = _json(cvfs.ok("prefetch", mount / "a", mount / "empty", "--json"))
        assert report["files"] == 3
    assert b"ok       repository: revision 1 of small.example.org" in cvfs("doctor", tmp_path / "link").stdout
    assert "not below" in cvfs.refused("prefetch", tmp_path / "mnt/a", "/etc")
    cvfs.ok("umount", tmp_path / "mnt")


def test_what_cannot_be_had_is_told_and_the_rest_comes(cvfs: Command, server: FaultyServer, store: SmallStore) -> None:
    cvfs.ok("ls", "-R", server.url)
    largest = max((path for path in (store.path / "data").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    server.misbehave(servers.flip(0), f"/{largest.relative_to(store.path)}")
    for command in (("prefetch", server.url), ("export", server.url, "/", cvfs.top / "out")):
        outcome = cvfs(*command, extra={"CVFS_DEADLINE_S": "3"})
        assert outcome.returncode == 1
        assert b"Traceback" not in outcome.stderr
        assert b"failed, " in outcome.stderr.splitlines()[-1]
        assert b"large" in outcome.stderr
    assert (cvfs.top / "out/a/small").read_bytes() == TREE[b"a/small"]
    assert not (cvfs.top / "out/large").exists()
    server.recover()
    cvfs.ok("export", server.url, "/", cvfs.top / "out")
    assert (cvfs.top / "out/large").read_bytes() == LARGE


def test_export_goes_on_where_it_was(cvfs: Command, server: FaultyServer) -> None:
    out = cvfs.top / "new/out"
    assert _json(cvfs.ok("export", server.url, "/", out, "--json"))["present"] == 0
    assert (out / os.fsdecode(b"\xff\n")).read_bytes() == b"odd"
    assert os.readlink(out / "a/link") == "small"
    assert os.lstat(out / "a").st_mtime_ns == MTIME_NS
    (out / "large").write_bytes(b"half")
    (out / "a/small").unlink()
    (out / "more").touch()
    before = os.stat(out / "empty").st_ino
    assert _json(cvfs.ok("export", server.url, "/", out, "--json"))["present"] == 3
    assert (out / "large").read_bytes() == LARGE
    assert (out / "a/small").read_bytes() == TREE[b"a/small"]
    assert (os.stat(out / "empty").st_ino, (out / "more").exists()) == (before, True)
    assert not list(out.rglob(".cvfs-*"))


def test_export_of_what_is_no_directory(cvfs: Command, server: FaultyServer) -> None:
    assert cvfs.refused("export", server.url, "large", cvfs.top / "out") == "Not a directory: 'large'"
    assert "No such file" in cvfs.refused("export", server.url, "missing", cvfs.top / "out")
    (cvfs.top / "file").touch()
    assert "File exists" in cvfs.refused("export", server.url, "a", cvfs.top / "file")
    assert stat.S_ISREG(os.lstat(cvfs.top / "file").st_mode)


def test_a_tally_tells_the_first_errors_only() -> None:
    told: list[str] = []
    tally = Tally(told.append)
    for number in range(100):
        tally.fail(b"file%d" % number, PathError(5, b"file%d" % number))
    assert tally.failed == 100
    assert len(told) == 21
    assert told[0] == "Input/output error: 'file0'"
