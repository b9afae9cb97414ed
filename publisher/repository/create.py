"""Making a store: keys, a root, and an empty repository at revision 0."""

import stat
from dataclasses import dataclass

from cvfs.errors import ConfigError, StatusError
from cvfs.format.blob import seal
from cvfs.format.manifest import check_repository_name
from cvfs.format.tree import build
from cvfs.model import NO_CONTENT, BlobRef, Entry, Manifest, Record
from cvfs.trust import names
from cvfs.trust.values import Ahead
from publisher.repository.head_update import put_manifest
from publisher.signing import metadata
from publisher.signing.keys import ROLES, Keys, Signer, default_keys
from publisher.store import DirectoryStore, create_store


@dataclass(frozen=True, slots=True)
class Security:
    """How a repository is signed. A passphrase protects all keys but the timestamp's, which a timer has to use."""

    root_threshold: int = 1
    timestamp_days: int = 7
    root_days: int = 730
    passphrase: str | None = None


def create(
    location: str, name: str, published_s: int, keys: Keys | None = None, security: Security | None = None
) -> DirectoryStore:
    """Make `location` the store of an empty repository, signed with `keys`, made where they are not there yet.

    Raises FormatError (bad name), ConfigError (keys), StoreError.
    """
    check_repository_name(name)
    keys = keys or Keys(default_keys(name))
    store = create_store(location)
    if keys.known_root() not in (None, _begun_root(store)):
        raise ConfigError(f"the keys in {keys.directory} belong to a repository already: name others with --keys")
    manifest = _empty_manifest(store, name, published_s)
    store.sync()
    sign_first(store, manifest, keys, security or Security(), published_s)
    return store


def _begun_root(store: DirectoryStore) -> bytes | None:
    """The root of a store that was not finished, and has no head."""
    try:
        return store.get_metadata(names.metadata_path("root", 1), names.MAX_ROOT_BYTES)
    except StatusError:
        return None


def _empty_manifest(store: DirectoryStore, name: str, published_s: int) -> Manifest:
    def put(plain: bytes) -> BlobRef:
        ref, stored = seal(plain)
        store.put_blob(ref, stored)
        return ref

    mode = stat.S_IFDIR | 0o755
    mtime_ns = published_s * 1_000_000_000
    root_entry = Entry(b"", mode, 0, 0, mtime_ns, 0, 2, 0, 0, b"", b"", ())
    root = build([Record(b"", root_entry, NO_CONTENT)], put)
    return Manifest(name, 0, published_s, root.page, root.level, root.summary, None)


def sign_first(store: DirectoryStore, manifest: Manifest, keys: Keys, security: Security, now_s: int) -> None:
    """Make `manifest`, whose tree is stored, the head of a store that has none, and the keys that are not there yet."""
    signers = {role: _make_keys(keys, role, security.passphrase) for role in ROLES}
    validity = metadata.Validity(security.root_days, security.timestamp_days)
    root = metadata.make_root(manifest.repository, signers, security.root_threshold, validity, now_s)
    data = metadata.sign_root(root, None, signers["root"])
    ref, plain = put_manifest(store, manifest)
    targets = metadata.make_targets(1, ref, plain, now_s, signers["targets"])
    snapshot = metadata.make_snapshot(1, 1, targets, now_s, signers["snapshot"])
    keys.forget_root()  # That of a store begun before: killed before `keep_root`, it would be the root of none.
    for role, signed in (("root", data), ("targets", targets), ("snapshot", snapshot)):
        store.replace_metadata(names.metadata_path(role, 1), signed)
    keys.keep_root(data)
    days, ahead = security.timestamp_days, Ahead(1, 1, ref, manifest.root)
    store.write_head(metadata.make_timestamp(1, 1, snapshot, days, now_s, signers["timestamp"], ahead))


def _make_keys(keys: Keys, role: str, passphrase: str | None) -> list[Signer]:
    if not keys.signers(role) or role == "root":
        for path in (keys.root_paths if role == "root" else ()) or (keys.path(role),):
            keys.add(path, None if role == "timestamp" else passphrase)
    return keys.signers(role)
