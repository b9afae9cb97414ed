"""What signs a store, for people and machines. Nothing of a private key is in it."""

from dataclasses import asdict, dataclass
from typing import Any

from cvfs.trust.values import root_id
from publisher.repository.head import read_head
from publisher.signing import metadata
from publisher.signing.keys import ROLES, ROOT_FILE, Keys
from publisher.store import Store


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key that is trusted; `place` is the file or variable that has its private part, None if it is not here."""

    id: str
    place: str | None


@dataclass(frozen=True, slots=True)
class Role:
    """`threshold` of `keys` have to sign."""

    name: str
    threshold: int
    keys: tuple[TrustedKey, ...]


@dataclass(frozen=True, slots=True)
class KeyReport:
    """The keys of a repository; times in seconds since 1970."""

    repository: str
    root_version: int
    root_expires_s: int
    expires_s: int
    root_sha256: str
    root_file: str | None
    roles: tuple[Role, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def describe(store: Store, keys: Keys) -> KeyReport:
    """Raises StoreError, TrustError, ConfigError."""
    chain = read_head(store, keys.known_root()).chain
    root = metadata.parse_root(chain.bundle.root)
    roles = []
    for name in ROLES:
        here = {signer.public_key.keyid: place for place, signer in keys.places(name)}
        trusted = tuple(TrustedKey(keyid, here.get(keyid)) for keyid in root.roles[name].keyids)
        roles.append(Role(name, root.roles[name].threshold, trusted))
    return KeyReport(
        repository=chain.repository,
        root_version=chain.root_version,
        root_expires_s=chain.root_expires_s,
        expires_s=chain.expires_s,
        root_sha256=root_id(chain.bundle.root),
        root_file=str(keys.directory / ROOT_FILE) if keys.known_root() == chain.bundle.root else None,
        roles=tuple(roles),
    )
