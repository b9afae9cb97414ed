"""The vectors of kind `signed`: stores of one revision, signed by hand with keys that everybody knows."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.format.independent_reader import pack

NAME = "vectors.example.org"
ROLES = ("root", "timestamp", "snapshot", "targets")
EXPIRES = "2099-12-31T00:00:00Z"
LIMITS = {"root": 128 << 10, "timestamp": 16 << 10, "snapshot": 256 << 10, "targets": 4 << 20}

Vector = Callable[..., str]
Change = Callable[[Any], object]


def _key(role: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(role.ljust(32).encode())


def _public(role: str) -> str:
    return _key(role).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def _blob(plain: bytes) -> tuple[dict[str, Any], bytes]:
    """Stored raw: the same with any version of any compressor."""
    return {"id": blake3(plain).hexdigest(), "stored_size": len(plain), "plain_size": len(plain)}, plain


@dataclass
class Signed:
    """A store that is being made. Each change is made to what a role says, before the roles above it look at it."""

    manifest: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, Any] | None = None
    changes: dict[str, Change] = field(default_factory=dict)
    forged: str = ""
    """The role whose signature is not its own."""
    pad: str = ""
    """The role that is made as large as is allowed, and `over` bytes more."""
    over: int = 0

    def bodies(self) -> list[bytes]:
        """Root, timestamp, snapshot, targets; then blobs: the manifest, the root page, the tags."""
        page = _blob(pack([0, [], [[b"", [[b"", 0o040755, 0, 0, 0, 0, 2, 0, 0, b"", b"", []]], [None]]]]))
        document = {"format": 1, "features": [], "repository": NAME, "revision": 0, "published_s": 1_700_000_000}
        document |= {"entries": 1, "size_bytes": 0, "root": {**page[0], "level": 0}, **self.manifest}
        blobs = {"manifest.json": _blob(json.dumps(document).encode())}
        if self.tags is not None:
            blobs["tags.json"] = _blob(json.dumps({"format": 1, "tags": self.tags}).encode())
        named = {name: self._target(*blob) for name, blob in blobs.items()}
        targets = self._sign("targets", {"targets": named})
        snapshot = self._sign("snapshot", {"meta": {"targets.json": self._meta(targets)}})
        timestamp = self._sign("timestamp", {"meta": {"snapshot.json": self._meta(snapshot)}})
        stored = [blobs["manifest.json"], page, *(blobs[name] for name in blobs if name != "manifest.json")]
        return [self._sign("root", self._root()), timestamp, snapshot, targets, *(data for _, data in stored)]

    def _target(self, blob: dict[str, Any], plain: bytes) -> dict[str, Any]:
        return {"length": len(plain), "hashes": self._hashes(plain), "custom": {"blob": blob}}

    def _meta(self, data: bytes) -> dict[str, Any]:
        return {"version": 1, "length": len(data), "hashes": self._hashes(data)}

    def _hashes(self, data: bytes) -> dict[str, str]:
        return {"sha256": hashlib.sha256(data).hexdigest()}

    def _root(self) -> dict[str, Any]:
        keys = {
            role: {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": _public(role)}} for role in ROLES
        }
        roles = {role: {"keyids": [role], "threshold": 1} for role in ROLES}
        return {"keys": keys, "roles": roles, "consistent_snapshot": True, "x-cvfs-repository": NAME}

    def _sign(self, role: str, said: dict[str, Any]) -> bytes:
        signed = {"_type": role, "spec_version": "1.0.31", "version": 1, "expires": EXPIRES, **said}
        self.changes.get(role, lambda _signed: None)(signed)
        data = self._encode(role, signed)
        if role == self.pad:
            signed["x-pad"] = ""
            signed["x-pad"] = "x" * (LIMITS[role] + self.over - len(self._encode(role, signed)))
            data = self._encode(role, signed)
        return data

    def _encode(self, role: str, signed: dict[str, Any]) -> bytes:
        # Of what stands here, TUF's canonical JSON is this: sorted, without spaces, and there is nothing to escape.
        canonical = json.dumps(signed, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
        signature = _key("thief" if role == self.forged else role).sign(canonical).hex()
        return json.dumps({"signed": signed, "signatures": [{"keyid": role, "sig": signature}]}).encode()


def signed(vector: Vector) -> Iterable[str]:
    """All of them; `vector` is that of make_vectors."""

    def one(comment: str, rule: str, store: Signed) -> str:
        return vector("signed", comment, rule, store.bodies())

    tag = {"v1": {"id": "ab" * 32, "stored_size": 1, "plain_size": 1, "revision": 0, "published_s": 1}}
    yield one("Signed manifest", "", Signed())
    yield one("Signed manifest and tags", "", Signed(tags=tag))
    extra = {role: (lambda said: said.update({"x-note": [1, {"deep": None}]})) for role in ROLES}
    yield one("Members that nobody knows", "", Signed(changes=extra))
    yield one("Target that nobody knows", "", Signed(changes={"targets": _add_target}))
    for role, limit in LIMITS.items():
        yield one(f"Exactly {limit} bytes of {role}", "", Signed(pad=role))
        yield one(f"More than {limit} bytes of {role}", "S3", Signed(pad=role, over=1))
    yield from bad_signatures(one)
    yield from bad_targets(one, tag)
    yield one("Manifest of another repository", "S2", Signed(manifest={"repository": "other.example.org"}))
    other = {"root": lambda said: said.update({"x-cvfs-repository": "other.example.org"})}
    yield one("Root of another repository", "S2", Signed(changes=other))
    yield one("Root of no repository", "S2", Signed(changes={"root": lambda said: said.pop("x-cvfs-repository")}))


def _add_target(said: Any) -> None:
    said["targets"]["x-note.txt"] = {"length": 1, "hashes": {"sha256": "00" * 32}}


One = Callable[[str, str, Signed], str]


def bad_signatures(one: One) -> Iterable[str]:
    for role in ROLES:
        yield one(f"Thief signs the {role}", "S4", Signed(forged=role))
    wrong = {"version": 2, "hashes": {"sha256": "00" * 32}, "length": 7}
    for key, value in wrong.items():
        for role, below in (("timestamp", "snapshot.json"), ("snapshot", "targets.json")):
            change: Change = lambda said, key=key, value=value, below=below: said["meta"][below].update({key: value})  # noqa: E731
            yield one(f"Wrong {key} in the {role}", "S4", Signed(changes={role: change}))
    past = {"timestamp": lambda said: said.update({"expires": "2020-01-01T00:00:00Z"})}
    yield one("Timestamp that has expired", "S4", Signed(changes=past))


def bad_targets(one: One, tag: dict[str, Any]) -> Iterable[str]:
    def target(change: Change, name: str = "manifest.json") -> Signed:
        return Signed(changes={"targets": lambda said: change(said["targets"][name])}, tags=tag)

    zeros = {"sha256": "00" * 32}
    yield one("No manifest among the targets", "S1", Signed(changes={"targets": lambda said: said["targets"].clear()}))
    yield one("Manifest with another hash", "S1", target(lambda said: said.update({"hashes": zeros})))
    yield one("Manifest with another length", "S1", target(lambda said: said.update({"length": 7})))
    yield one("Manifest without a blob", "S1", target(lambda said: said.pop("custom")))
    yield one("Manifest without a hash", "S1", target(lambda said: said.update({"hashes": {"md5": "00" * 16}})))
    large = {"blob": {"id": "ab" * 32, "stored_size": 1, "plain_size": 65537}}
    yield one(
        "Manifest over 64 KiB among the targets", "S1", target(lambda said: said.update(custom=large, length=65537))
    )
    yield one("Tags with another hash", "S1", target(lambda said: said.update({"hashes": zeros}), "tags.json"))
    yield one("Tags with another length", "S1", target(lambda said: said.update({"length": 7}), "tags.json"))
