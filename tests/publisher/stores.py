"""Stores for the publisher's tests: made by its functions or its command line, and read back by the format alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cvfs.format.blob import blob_path, digest, unseal
from cvfs.format.pages import LocationPage, Page, decode_page
from cvfs.format.tree import Tree
from cvfs.model import BlobRef, Location, Manifest, Record
from publisher.publishing.options import Options
from publisher.publishing.publish import publish
from publisher.publishing.report import Report
from publisher.repository.create import create
from publisher.repository.head import Head, read_head
from publisher.signing.keys import Keys
from publisher.store import open_store
from tests.trees import Facts

NAME = "test.example.org"
NOW_S = 1_700_000_000
REPOSITORY = Path(__file__).resolve().parents[2]


class Store:
    """A store in `path`, with its own state directory beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path.with_name(path.name + "-state")
        self.keys = Keys(path.with_name(path.name + "-keys"))
        create(str(path), NAME, NOW_S, self.keys)

    def publish(self, tree: Path, **options: Any) -> Report:
        """Publish without a command line."""
        opened = open_store(str(self.path))
        with opened.lock(None):
            return publish(opened, str(tree), self.state, Options(**options), NOW_S, keys=self.keys)

    @property
    def manifest(self) -> Manifest:
        return self.head.manifest

    @property
    def head(self) -> Head:
        """Verified."""
        return read_head(open_store(str(self.path)), self.keys.known_root())

    def blobs(self) -> dict[str, bytes]:
        """All that is in data/, by path."""
        found = (path for path in (self.path / "data").rglob("*") if path.is_file())
        return {str(path.relative_to(self.path)): path.read_bytes() for path in found}

    def plain(self, ref: BlobRef) -> bytes:
        """Verified."""
        name = blob_path(ref.id)
        return unseal(ref, (self.path / name).read_bytes(), name)

    def load(self, ref: BlobRef) -> Page:
        return decode_page(self.plain(ref))

    def tree(self) -> Tree:
        return Tree(self.manifest.root, self.manifest.level, self.load)

    def records(self) -> list[Record]:
        return list(self.tree().records())

    def snapshot(self) -> dict[bytes, Facts]:
        """What `tests.trees.snapshot` must say of a mount of the newest revision. Every id is verified."""
        records = self.records()
        groups: dict[int, list[bytes]] = {}
        for record in records:
            if record.entry.link_group:
                groups.setdefault(record.entry.link_group, []).append(record.path)
        return {record.path: self._facts(record, groups) for record in records}

    def _facts(self, record: Record, groups: dict[int, list[bytes]]) -> Facts:
        entry = record.entry
        names = tuple(sorted(groups.get(entry.link_group, ())))
        data = self.content(record) if entry.is_regular else b""
        facts = (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.size, entry.nlink, entry.rdev)
        return Facts(*facts, names, data, entry.target, entry.xattrs)

    def content(self, record: Record) -> bytes:
        """The bytes of a file, against its content id and its chunks' ids."""
        data = bytearray(record.entry.size)
        for location in self.locations(record):
            pack, start, end = (
                self.plain(location.pack),
                location.object_offset,
                location.object_offset + location.length,
            )
            data[start:end] = piece = pack[location.pack_offset : location.pack_offset + location.length]
            assert not location.chunk_id or digest(piece) == location.chunk_id
        assert len(data) == record.entry.size
        assert digest(bytes(data)) == record.entry.content_id, record.path
        return bytes(data)

    def locations(self, record: Record) -> Iterator[Location]:
        yield from record.content.locations
        for offset, ref in record.content.location_pages:
            page = self.load(ref)
            assert isinstance(page, LocationPage)
            assert page.locations[0].object_offset == offset
            yield from page.locations


def command(*arguments: str | Path) -> list[str]:
    keys = ["--keys", f"{arguments[1]}-keys"] if arguments[0] == "publish" and len(arguments) > 2 else []
    return [sys.executable, "-bb", "-W", "error", "-m", "publisher", *map(str, arguments), *keys]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **more}


def run(*arguments: str | Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line to its end. Keys are beside the store, which is the second argument."""
    if len(arguments) > 1:
        more = {"CVFS_KEYS": f"{os.path.abspath(arguments[1])}-keys", **more}
    return subprocess.run(
        command(*arguments), env=environment(**more), capture_output=True, text=True, check=False, timeout=60
    )


def error_line(result: "subprocess.CompletedProcess[str]") -> str:
    """The one line that a failed command says, and nothing else."""
    assert result.returncode == 1, result
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("cvfs-publisher: error: "), line
    return line.removeprefix("cvfs-publisher: error: ")
