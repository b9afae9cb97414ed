"""Changes of keys: each is a new version of the root, which clients that hold any older one follow by themselves.

Where the old key is at hand, what it has signed is first signed by both, then the new root is put beside: at no moment
does the store fail to verify, for a client with the old root or with the new one, and a crash in between costs nothing.
"""

from typing import NamedTuple

from cvfs.errors import ConfigError, StoreError
from cvfs.trust import names
from publisher.repository.head import Head, read_own_head
from publisher.repository.head_update import SignersByRole, add, next_timestamp
from publisher.signing import metadata
from publisher.signing.keys import ROLES, Keys, Signer
from publisher.store import Store

_SIGNED_AGAIN = {"root": (), "targets": ROLES[1:], "snapshot": ROLES[2:], "timestamp": ROLES[3:]}
"""What a new key for a role makes necessary to sign."""


class Renewed(NamedTuple):
    """A timestamp that was signed again: until when it and the root are valid, in seconds since 1970."""

    expires_s: int
    root_expires_s: int


def resign(store: Store, keys: Keys, now_s: int, days: int | None = None) -> Renewed:
    """Sign the timestamp again, for `days` or as long as before; its key alone is needed. The caller holds the lock."""
    head = read_own_head(store, keys)
    bundle = head.chain.bundle
    signers = metadata.select(metadata.parse_root(bundle.root), "timestamp", keys.signers("timestamp"))
    timestamp = metadata.renew_timestamp(bundle.timestamp, days, now_s, signers)
    store.swap_head(bundle.timestamp, timestamp)
    return Renewed(now_s + metadata.days_of(timestamp) * 86400, head.chain.root_expires_s)


def rotate(store: Store, keys: Keys, role: str, passphrase: str | None, now_s: int) -> bytes:
    """Replace the keys of `role` by a new one; returns the new root. The caller holds the lock."""
    head = read_own_head(store, keys)
    old = metadata.parse_root(head.chain.bundle.root)
    keys.settle(role, old.roles[role].keyids)
    signers = {name: keys.signers(name) for name in ROLES}
    new = keys.add(keys.next_path(role), passphrase)
    root = metadata.next_root(old, now_s)
    _put_in_place(root, role, new, signers[role])
    both = {name: [*_trusted(old, name, signers[name]), *([new] if name == role else [])] for name in ROLES}
    data = metadata.sign_root(root, old, [*signers["root"], *both["root"]])
    if len(both[role]) > 1 or role == "root":
        _sign_again(store, head, role, both, now_s)
        _add_root(store, root, data)
    else:  # the old key is lost: for a moment there is a root whose timestamp is not signed yet
        _add_root(store, root, data)
        _sign_again(store, head, role, both, now_s)
    keys.keep_root(data)
    keys.settle(role, root.roles[role].keyids)
    return data


def change_root_keys(
    store: Store, keys: Keys, *, add_key: Signer | None, remove: str | None, threshold: int | None, now_s: int
) -> bytes:
    """Trust one more root key, or the one with the id `remove` no more; or neither, only renew the root."""
    head = read_own_head(store, keys)
    old = metadata.parse_root(head.chain.bundle.root)
    root = metadata.next_root(old, now_s)
    if add_key is not None:
        root.add_key(add_key.public_key, "root")
    if remove is not None:
        root.revoke_key(_find_key(root, remove), "root")
    role = root.roles["root"]
    role.threshold = threshold or min(role.threshold, len(role.keyids))
    if not 1 <= role.threshold <= len(role.keyids):
        raise ConfigError(f"a threshold of {role.threshold} cannot be reached with {len(role.keyids)} root keys")
    data = metadata.sign_root(root, old, [*keys.signers("root"), *([add_key] if add_key else [])])
    _add_root(store, root, data)
    keys.keep_root(data)
    return data


def _put_in_place(root: metadata.RootRole, role: str, new: Signer, replaced: list[Signer]) -> None:
    """Let `new` sign for `role`: in place of all keys, or of several root keys in place of the first that is here."""
    if role == "root" and len(root.roles["root"].keyids) > 1:
        here = [signer.public_key.keyid for signer in replaced if signer.public_key.keyid in root.roles["root"].keyids]
        if not here:
            raise ConfigError("none of the root keys is here: name the one to be replaced with --root-key")
        root.revoke_key(here[0], "root")
        root.add_key(new.public_key, "root")
    else:
        metadata.replace_keys(root, role, [new])


def _sign_again(store: Store, head: Head, role: str, signers: SignersByRole, now_s: int) -> None:
    """Sign what `role` has signed and all above it, with the keys given; nothing is said that was not said before."""
    again, bundle = _SIGNED_AGAIN[role], head.chain.bundle
    for needed in again:
        if not signers[needed]:
            raise ConfigError(f"the {needed} key is needed too, and is not here")
    if not again:
        return
    if again == ("timestamp",):
        timestamp = metadata.renew_timestamp(bundle.timestamp, None, now_s, signers["timestamp"])
    else:
        version, targets = metadata.version_of(bundle.targets), bundle.targets
        if "targets" in again:
            version, targets = add(
                store,
                "targets",
                version,
                lambda number: metadata.renew_targets(bundle.targets, number, now_s, signers["targets"]),
            )
        timestamp = next_timestamp(store, head, version, targets, signers, now_s)
    store.swap_head(bundle.timestamp, timestamp)


def _trusted(root: metadata.RootRole, role: str, signers: list[Signer]) -> list[Signer]:
    return [signer for signer in signers if signer.public_key.keyid in root.roles[role].keyids]


def _add_root(store: Store, root: metadata.RootRole, data: bytes) -> None:
    if not store.add_metadata(names.metadata_path("root", root.version), data):
        raise StoreError(f"{store.location}: somebody else has made version {root.version} of the root")


def _find_key(root: metadata.RootRole, prefix: str) -> str:
    found = [keyid for keyid in root.roles["root"].keyids if keyid.startswith(prefix.lower())]
    if len(found) != 1 or len(prefix) < 6:
        raise ConfigError(f"{len(found)} root keys have an id that begins with {prefix!r}: cvfs-publisher key list")
    return found[0]
