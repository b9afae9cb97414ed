"""The signed part of the second reader, written from docs/format.md, section 7, and TUF's specification alone."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.format.independent_reader import Ref, Refused, json_ref, need, read_manifest, read_page, read_tags, unseal

LIMITS = {"root": 128 << 10, "timestamp": 16 << 10, "snapshot": 256 << 10, "targets": 4 << 20}
DOCUMENTS = {"manifest.json": 64 << 10, "tags.json": 1 << 20}


class Store:
    """What is served: metadata by role, of version 1 each; blobs by their ids. The root is trusted as it is."""

    def __init__(self, root: bytes, timestamp: bytes, snapshot: bytes, targets: bytes, *blobs: bytes) -> None:
        self.metadata = {"root": root, "timestamp": timestamp, "snapshot": snapshot, "targets": targets}
        self.blobs = {blake3(blob).digest(): blob for blob in blobs}

    def read(self, now: datetime) -> dict[str, Any]:
        """The verified manifest."""
        root = self._signed("root", self._json("root"), now)
        timestamp = self._signed("timestamp", root, now)
        snapshot = self._signed("snapshot", root, now, timestamp["meta"]["snapshot.json"])
        targets = self._signed("targets", root, now, snapshot["meta"]["targets.json"])
        plain = self._document(targets["targets"], "manifest.json")
        need(plain, "S1", "no manifest")
        manifest = read_manifest(plain)
        need(manifest["repository"] == root.get("x-cvfs-repository"), "S2")
        if tags := self._document(targets["targets"], "tags.json"):
            read_tags(tags)
        read_page(self._blob(json_ref(manifest["root"])))
        return manifest

    def _json(self, role: str) -> Any:
        need(len(self.metadata[role]) <= LIMITS[role], "S3", role)
        return json.loads(self.metadata[role])["signed"]

    def _signed(self, role: str, root: Any, now: datetime, said: Any = None) -> Any:
        """What a role says, if `root` trusts who signed it, and it is what the role above `said` it is."""
        signed, data = self._json(role), self.metadata[role]
        if said is not None:
            need(len(data) == said.get("length", len(data)), "S4", "length")
            need(hashlib.sha256(data).hexdigest() == said["hashes"]["sha256"], "S4", "hash")
            need(signed["version"] == said["version"], "S4", "version")
        valid = {one["keyid"] for one in json.loads(data)["signatures"] if _is_valid(one, signed, root)}
        trusted = root["roles"][role]
        need(len(valid & set(trusted["keyids"])) >= trusted["threshold"], "S4", "signature")
        need(signed["_type"] == role, "S4", "type")
        need(datetime.strptime(signed["expires"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) > now, "S4", "expired")
        return signed

    def _document(self, targets: Any, name: str) -> bytes:
        target = targets.get(name)
        if target is None:
            return b""
        need("custom" in target and "sha256" in target["hashes"], "S1")
        ref = json_ref(target["custom"]["blob"])
        need(target["length"] == ref.plain_size <= DOCUMENTS[name], "S1", "length")
        plain = self._blob(ref)
        need(hashlib.sha256(plain).hexdigest() == target["hashes"]["sha256"], "S1", "hash")
        return plain

    def _blob(self, ref: Ref) -> bytes:
        need(ref.id in self.blobs, "S1", "no such blob")
        return unseal(ref, self.blobs[ref.id])


def _is_valid(signature: Any, signed: Any, root: Any) -> bool:
    key = root["keys"].get(signature["keyid"])
    if key is None:
        return False
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key["keyval"]["public"]))
        public.verify(bytes.fromhex(signature["sig"]), _canonical(signed).encode())
    except InvalidSignature:
        return False
    return True


def _canonical(value: Any) -> str:
    """Canonical JSON, as TUF has it from OLPC."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_canonical(key)}:{_canonical(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_canonical, value)) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value)
    raise Refused("S4", "no canonical form")
