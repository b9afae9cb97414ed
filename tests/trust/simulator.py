"""A repository in memory that is the transport: what a publisher signs, and what mirrors make of it.

`Simulator` has the methods of `Transport` that `Mirrors` uses, so no socket stands between a test and the rules. The
publisher's own code signs (`publisher.repository`, `publisher.maintenance`); a test that attacks changes `files`, or
signs with keys that it has stolen.
"""

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from msgspec.structs import replace
from tuf.api.metadata import Metadata

from cvfs.errors import StatusError, StoreError, TooLargeError
from cvfs.format.blob import blob_path, seal
from cvfs.format.tree import Root, build
from cvfs.heads import Head, Heads
from cvfs.mirrors import Mirrors, Network
from cvfs.model import NO_CONTENT, BlobRef, Manifest, Record
from cvfs.revisions import Revisions
from cvfs.transport import Response
from cvfs.trust import names
from cvfs.trust.anchor import Anchor
from cvfs.trust.state import FILE
from cvfs.trust.values import root_id
from cvfs.which import Which
from publisher.maintenance import key_changes
from publisher.repository import head, head_update, tags
from publisher.signing import metadata
from publisher.signing.keys import ROLES, Keys, Signer
from publisher.store.base import HeadMovedError
from tests.small_store import make_entry

NAME = "sim.example.org"
NOW_S = 1_800_000_000
DAY_S = 86_400
DEADLINE_S = 3.0

Files = dict[str, bytes]
Fault = Callable[[str, bytes | None], bytes | None]
"""(path, what is there) -> what is served; may raise TransportError."""


class MemoryStore:
    """A publisher's store that is a dictionary."""

    location = "memory"

    def __init__(self) -> None:
        self.files: Files = {}

    def has_blob(self, ref: BlobRef) -> bool:
        return blob_path(ref.id) in self.files

    def put_blob(self, ref: BlobRef, stored: bytes) -> bool:
        is_new = not self.has_blob(ref)
        self.files[blob_path(ref.id)] = stored
        return is_new

    def get_blob(self, ref: BlobRef) -> bytes:
        return self.files[blob_path(ref.id)]

    def get_metadata(self, path: str, max_bytes: int) -> bytes:
        if path not in self.files:
            raise StatusError(path, 404)
        if len(self.files[path]) > max_bytes:
            raise StoreError("too large")
        return self.files[path]

    def add_metadata(self, path: str, data: bytes) -> bool:
        return self.files.setdefault(path, data) == data

    def read_head(self) -> bytes:
        return self.files[names.TIMESTAMP]

    def swap_head(self, expected: bytes, new: bytes) -> None:
        if self.read_head() != expected:
            raise HeadMovedError("moved")
        self.files[names.TIMESTAMP] = new

    def sync(self) -> None:
        """Memory is as durable as it gets."""

    @contextmanager
    def lock(self, waiting: Callable[[], None] | None) -> Iterator[None]:
        yield


class Publisher:
    """Signs a repository, by the real code; `now_s` is its clock."""

    def __init__(self, directory: Path, name: str = NAME, *, threshold: int = 1, days: int = 7) -> None:
        self.store, self.now_s = MemoryStore(), NOW_S
        paths = tuple(directory / f"root-{number}.pem" for number in range(threshold)) if threshold > 1 else ()
        self.keys = Keys(directory, paths)
        signers = self.make_keys()
        root = metadata.make_root(name, signers, threshold, metadata.Validity(timestamp_days=days), NOW_S)
        self.root = metadata.sign_root(root, None, signers["root"])
        self.keys.keep_root(self.root)
        manifest = self.make_first(name)
        ref, plain = head_update.put_manifest(self.store, manifest)
        targets = metadata.make_targets(1, ref, plain, NOW_S, signers["targets"])
        snapshot = metadata.make_snapshot(1, 1, targets, NOW_S, signers["snapshot"])
        for role, data in (("root", self.root), ("targets", targets), ("snapshot", snapshot)):
            self.store.add_metadata(names.metadata_path(role, 1), data)
        self.files[names.TIMESTAMP] = metadata.make_timestamp(1, 1, snapshot, days, NOW_S, signers["timestamp"])

    @property
    def files(self) -> Files:
        return self.store.files

    def make_keys(self) -> dict[str, list[Signer]]:
        for role in ROLES:
            for path in (self.keys.root_paths if role == "root" else ()) or (self.keys.path(role),):
                self.keys.add(path, None)
        return {role: self.keys.signers(role) for role in ROLES}

    def make_first(self, name: str) -> Manifest:
        """Revision 0."""
        root = self._root(b"nothing")
        return Manifest(name, 0, self.now_s, root.page, root.level, root.summary, None)

    def _root(self, content: bytes) -> Root:
        """A tree with one link that nobody reads, stored."""

        def put(plain: bytes) -> BlobRef:
            ref, stored = seal(plain)
            self.store.put_blob(ref, stored)
            return ref

        directory = make_entry(b"", stat.S_IFDIR | 0o755)
        link = make_entry(b"link", stat.S_IFLNK | 0o777, target=content)
        return build([Record(b"", directory, NO_CONTENT), Record(b"", link, NO_CONTENT)], put)

    def publish(self, content: bytes = b"x", name: str | None = None, count: int = 1) -> Manifest:
        """The next revision, or the next `count`, of which only the last was ever the newest."""
        before = head.read_own_head(self.store, self.keys)
        chain, signers = before.chain, head_update.online_signers(self.keys, before.chain.bundle.root)
        for _ in range(count - 1):
            manifest = self._next(before, content, name)
            before = head.Head(manifest, head_update.put_manifest(self.store, manifest)[0], chain)
        manifest = self._next(before, content, name)
        head_update.advance(self.store, before, manifest, signers, self.now_s)
        return manifest

    def _next(self, before: head.Head, content: bytes, name: str | None) -> Manifest:
        self.now_s += 1
        root = self._root(b"%d %s" % (before.manifest.revision + 1, content))
        manifest = head_update.next_manifest(before, root, self.now_s)
        return replace(manifest, repository=name or manifest.repository)

    def tag(self, name: str, number: int | None = None, *, move: bool = False) -> None:
        tags.set_tag(self.store, self.keys, name, number, self.now_s, move=move)

    def resign(self, days: int | None = None) -> None:
        key_changes.resign(self.store, self.keys, self.now_s, days)

    def resign_blindly(self) -> None:
        """A newer timestamp of the same, whatever else is in the store."""
        signers = self.keys.signers("timestamp")
        self.files[names.TIMESTAMP] = metadata.renew_timestamp(self.files[names.TIMESTAMP], None, self.now_s, signers)

    def rotate(self, role: str) -> None:
        key_changes.rotate(self.store, self.keys, role, None, self.now_s)

    def steal(self, *roles: str) -> dict[str, Signer]:
        """The private keys of `roles`."""
        return {role: self.keys.signers(role)[0] for role in roles}

    def current(self, role: str) -> str:
        """The path of the newest metadata of `role`."""
        numbers = (int(path.split("/")[1].split(".")[0]) for path in self.files if path.endswith(f".{role}.json"))
        return names.TIMESTAMP if role == "timestamp" else names.metadata_path(role, max(numbers))


class Simulator:
    """Mirrors of publishers: each address has files of its own, and may have a fault."""

    def __init__(self) -> None:
        self._files: dict[str, Files] = {}
        self._faults: dict[str, Fault] = {}
        self.requests: list[str] = []
        self.not_modified = 0
        self.depth = 0
        """Round trips: the longest chain of requests, each begun after the one before had been answered."""

    def serve(self, url: str, files: Files, fault: Fault | None = None) -> str:
        self._files[url] = files
        self._faults.pop(url, None)
        if fault is not None:
            self._faults[url] = fault
        return url

    def reset(self) -> None:
        self.requests, self.depth, self.not_modified = [], 0, 0

    async def get(
        self,
        url: str,
        *,
        max_bytes: int,
        exact_bytes: int | None = None,
        deadline_s: float,
        etag: str | None = None,
        fresh: bool = False,
        check: Callable[[bytes, str], object] | None = None,
        proxy: str = "",
    ) -> Response:
        base = next(base for base in self._files if url.startswith(f"{base}/"))
        path = url.removeprefix(f"{base}/")
        self.requests.append(path)
        depth = self.depth + 1
        await trio.sleep(0.001)
        self.depth = max(self.depth, depth)
        data = self._look(base, path, url)
        tag = f'"{hash(data)}"'
        if etag == tag:
            self.not_modified += 1
            return Response(b"", tag, True, 0.0)
        if len(data) > max_bytes:
            raise TooLargeError(url, f"more than {max_bytes} bytes")
        if check is not None:
            check(data, url)
        return Response(data, tag, False, 0.0)

    def _look(self, base: str, path: str, url: str) -> bytes:
        data: bytes | None = self._files[base].get(path)
        if base in self._faults:
            data = self._faults[base](path, data)
        if data is None:
            raise StatusError(url, 404, "Not Found")
        return data


class World:
    """A publisher, a simulator and a client whose state survives; `now_s` is the client's clock."""

    URL = "http://mirror.example.org/sim.example.org"

    def __init__(self, top: Path, **options: Any) -> None:
        self.publisher = Publisher(top / "keys", **options)
        self.simulator = Simulator()
        self.simulator.serve(self.URL, self.publisher.files)
        self.state = top / "state"
        self.urls = [self.URL]
        self.now_s = NOW_S + 60
        self.first_root = self.publisher.root

    @property
    def files(self) -> Files:
        return self.publisher.files

    def anchor(self) -> Anchor:
        return Anchor("test", self.first_root, root_id(self.first_root))

    def refresh(
        self, *, state: Path | None = None, anchor: Anchor | None = None, deadline_s: float = DEADLINE_S
    ) -> Head:
        """What a client that has just started takes for the head; it accepts what it can read the root of."""
        return trio.run(self._refresh, state or self.state, anchor or self.anchor(), deadline_s)

    async def _refresh(self, state: Path, anchor: Anchor, deadline_s: float) -> Head:
        mirrors = Mirrors(Network(self.simulator), self.urls)  # type: ignore[arg-type]
        heads = Heads(mirrors, self.URL, state, anchor, now=lambda: self.now_s)
        found = await heads.current(deadline_s)
        if not found.problem:
            await mirrors.fetch_blob(found.manifest.root, deadline_s)
            await heads.accept(found)
        return found

    def find(self, which: Which, deadline_s: float = DEADLINE_S) -> Manifest:
        """The revision that a client which has just started takes for `which`."""
        return trio.run(self._find, which, deadline_s)

    async def _find(self, which: Which, deadline_s: float) -> Manifest:
        found = await self._refresh(self.state, self.anchor(), deadline_s)
        self.simulator.reset()
        mirrors = Mirrors(Network(self.simulator), self.urls)  # type: ignore[arg-type]
        return await Revisions(mirrors, self.state).find(found, which, deadline_s)

    def stored(self) -> bytes:
        return (self.state / FILE).read_bytes()


def resign_with(files: Files, path: str, change: Callable[[Any], None], *signers: Signer) -> bytes:
    """The metadata at `path`, changed and signed by `signers` alone, put in its place."""
    metadata: Metadata[Any] = Metadata.from_bytes(files[path])
    change(metadata.signed)
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    files[path] = metadata.to_bytes()
    return files[path]
