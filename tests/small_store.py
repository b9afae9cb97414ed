"""A store made of a few literal files, without the publisher: for tests of what reads."""

import stat
import time
from collections.abc import Mapping
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from cvfs.format.blob import blob_path, digest, seal
from cvfs.format.manifest import decode_manifest, encode_manifest
from cvfs.format.pages import key_of
from cvfs.format.tree import build
from cvfs.model import NO_CONTENT, BlobRef, Content, Entry, Location, Manifest, Record, split
from cvfs.trust.names import TIMESTAMP, metadata_path
from publisher.signing import metadata
from publisher.signing.keys import ROLES

Tree = Mapping[bytes, bytes | str | None]
"""Path: content of a file, target of a symbolic link, or None for a directory."""

MANIFEST = "manifest.json"
"""A copy of the newest manifest, for tests that need no trust. No client reads it."""

MTIME_NS = 1_700_000_000_123_456_789


class SmallStore:
    """A store in `path`; each `publish` makes a revision. Its root is `root`, beside the store."""

    def __init__(self, path: Path, name: str = "small.example.org") -> None:
        self.path, self.name = path, name
        self.revision = 0
        self.parent: BlobRef | None = None
        self.keys = {role: [CryptoSigner.generate_ed25519()] for role in ROLES}
        self.root = path.with_name("root.json")
        root = metadata.make_root(name, self.keys, 1, metadata.Validity(), int(time.time()))
        self.root.write_bytes(metadata.sign_root(root, None, self.keys["root"]))

    def publish(self, tree: Tree) -> Manifest:
        """A revision that consists of `tree`, and of the directories above what it names."""
        records = sorted(self._records(tree), key=lambda record: key_of(record.directory, record.entry.name))
        root = build(records, self.put)
        self.revision += 1
        summary = root.summary
        manifest = Manifest(self.name, self.revision, 1_700_000_000, root.page, root.level, summary, self.parent)
        data = encode_manifest(manifest)
        self.parent = self.put(data)
        (self.path / MANIFEST).write_bytes(data)
        self.sign(self.parent, data)
        return decode_manifest(data)

    def sign(self, ref: BlobRef, plain: bytes) -> None:
        """Make `plain`, stored as `ref`, the newest manifest, whatever it says."""
        now_s, version, keys = int(time.time()), self.revision, self.keys
        targets = metadata.make_targets(version, ref, plain, now_s, keys["targets"])
        snapshot = metadata.make_snapshot(version, version, targets, now_s, keys["snapshot"])
        timestamp = metadata.make_timestamp(version, version, snapshot, 7, now_s, keys["timestamp"])
        (self.path / "metadata").mkdir(exist_ok=True)
        for name, data in (
            (metadata_path("root", 1), self.root.read_bytes()),
            (metadata_path("targets", version), targets),
            (metadata_path("snapshot", version), snapshot),
            (TIMESTAMP, timestamp),
        ):
            (self.path / name).write_bytes(data)

    def put(self, plain: bytes) -> BlobRef:
        ref, stored = seal(plain)
        file = self.path / blob_path(ref.id)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(stored)
        return ref

    def blobs(self) -> list[Path]:
        return [path for path in (self.path / "data").rglob("*") if path.is_file()]

    def _records(self, tree: Tree) -> list[Record]:
        whole: dict[bytes, bytes | str | None] = {b"": None}
        for path in tree:
            while path:
                path, _ = split(path)
                whole[path] = None
        return [self._record(path, what) for path, what in (whole | dict(tree)).items()]

    def _record(self, path: bytes, what: bytes | str | None) -> Record:
        directory, name = split(path)
        if what is None:
            return Record(directory, make_entry(name, stat.S_IFDIR | 0o755), NO_CONTENT)
        if isinstance(what, str):
            return Record(directory, make_entry(name, stat.S_IFLNK | 0o777, target=what.encode()), NO_CONTENT)
        entry = make_entry(name, stat.S_IFREG | 0o644, data=what)
        if not what:
            return Record(directory, entry, NO_CONTENT)
        return Record(directory, entry, Content((Location(0, len(what), self.put(what), 0, b""),)))


def make_entry(name: bytes, mode: int, *, data: bytes | None = None, target: bytes = b"") -> Entry:
    return Entry(
        name=name,
        mode=mode,
        uid=0,
        gid=0,
        mtime_ns=MTIME_NS,
        size=len(target) if data is None else len(data),
        nlink=1,
        link_group=0,
        rdev=0,
        content_id=b"" if data is None else digest(data),
        target=target,
        xattrs=(),
    )
