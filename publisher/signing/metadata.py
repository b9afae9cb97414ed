"""Signed metadata, made: pure, from values and keys to bytes. What they mean is docs/format.md, section 7."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from cvfs.errors import ConfigError
from cvfs.format.documents import encode_ref
from cvfs.model import BlobRef
from cvfs.trust import names
from cvfs.trust.values import Ahead

TIMESTAMP_DAYS = 7
ROOT_DAYS = 2 * 365
LONG_DAYS = 10 * 365
"""Of targets and snapshot. What is current is the timestamp's to say; a second clock only ends old repositories."""

DAYS_FIELD = "x-cvfs-days"
"""In the timestamp and the root: how long each is signed for, so that renewing it needs no setting."""

Signers = Sequence[CryptoSigner]
RootRole = Root


@dataclass(frozen=True, slots=True)
class Validity:
    """For how many days root and timestamp are signed."""

    root_days: int = ROOT_DAYS
    timestamp_days: int = TIMESTAMP_DAYS


def make_root(
    repository: str, keys: Mapping[str, Signers], threshold: int, validity: Validity, now_s: int, version: int = 1
) -> Root:
    """A root that trusts `keys`, by role. Raises ConfigError if the threshold cannot be reached."""
    if not 1 <= threshold <= len({signer.public_key.keyid for signer in keys["root"]}):
        raise ConfigError(f"a root threshold of {threshold} needs as many different root keys: name each by --root-key")
    fields = {names.REPOSITORY_FIELD: repository, DAYS_FIELD: validity.root_days}
    root = Root(
        version=version,
        expires=_in_days(now_s, validity.root_days),
        consistent_snapshot=True,
        unrecognized_fields=fields,
    )
    for role, signers in keys.items():
        for signer in signers:
            root.add_key(signer.public_key, role)
    root.roles["root"].threshold = threshold
    return root


def parse_root(data: bytes) -> Root:
    """Its signatures are not looked at."""
    root: Root = Metadata[Root].from_bytes(data).signed
    return root


def next_root(old: Root, now_s: int) -> Root:
    """The version after `old`, to be changed and signed; valid from now on for as long as `old` was meant to be."""
    root = deepcopy(old)
    root.version += 1
    root.expires = _in_days(now_s, root.unrecognized_fields.get(DAYS_FIELD, ROOT_DAYS))
    return root


def sign_root(root: Root, old: Root | None, signers: Signers) -> bytes:
    """The bytes of `root`, signed by those of `signers` that it or `old`, the version before, trusts for it.

    Raises ConfigError if these are not enough for both.
    """
    metadata = Metadata(root)
    trusted = set(root.roles["root"].keyids) | set(old.roles["root"].keyids if old else ())
    for signer in {signer.public_key.keyid: signer for signer in signers}.values():
        if signer.public_key.keyid in trusted:
            metadata.sign(signer, append=True)
    for demanding in (root, old):
        if demanding is not None:
            _check_threshold(demanding, metadata)
    return _encode(metadata)


def _check_threshold(demanding: Root, metadata: Metadata[Root]) -> None:
    try:
        demanding.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as error:
        role = demanding.roles["root"]
        raise ConfigError(
            f"version {demanding.version} of the root wants {role.threshold} of {len(role.keyids)} root keys, "
            "and they are not all here: name each of them with --root-key, those in the directory of keys too"
        ) from error


def replace_keys(root: Root, role: str, signers: Signers) -> None:
    """Let `signers` alone, instead of the keys before, sign for `role`."""
    for keyid in list(root.roles[role].keyids):
        root.revoke_key(keyid, role)
    for signer in signers:
        root.add_key(signer.public_key, role)


def select(root: Root, role: str, signers: Signers) -> Signers:
    """Those of `signers` that `root` trusts for `role`. Raises ConfigError: none, or too few."""
    known = root.roles[role]
    chosen = [signer for signer in signers if signer.public_key.keyid in known.keyids]
    if len(chosen) < known.threshold:
        raise ConfigError(f"the {role} key is not here, or not the one that the root trusts (cvfs-publisher key list)")
    return chosen


def make_targets(
    version: int, manifest: BlobRef, plain: bytes, now_s: int, signers: Signers, before: bytes = b""
) -> bytes:
    """Targets that name the manifest `plain`, stored as the blob `manifest`; what else `before` names stays."""
    return _with_target(before, names.MANIFEST, manifest, plain, version, now_s, signers)


def make_tags_target(version: int, tags: BlobRef, plain: bytes, now_s: int, signers: Signers, before: bytes) -> bytes:
    """Targets that name the tags `plain`, stored as the blob `tags`; what else `before` names stays."""
    return _with_target(before, names.TAGS, tags, plain, version, now_s, signers)


def _with_target(
    before: bytes, name: str, blob: BlobRef, plain: bytes, version: int, now_s: int, signers: Signers
) -> bytes:
    target = TargetFile.from_data(name, plain, ["sha256"])
    target.unrecognized_fields["custom"] = {"blob": encode_ref(blob)}
    named: dict[str, TargetFile] = Metadata[Targets].from_bytes(before).signed.targets if before else {}
    targets = Targets(version=version, expires=_in_days(now_s, LONG_DAYS), targets={**named, name: target})
    return _sign(targets, signers)


def renew_targets(data: bytes, version: int, now_s: int, signers: Signers) -> bytes:
    """The same targets, signed anew."""
    targets: Targets = Metadata[Targets].from_bytes(data).signed
    targets.version, targets.expires = version, _in_days(now_s, LONG_DAYS)
    return _sign(targets, signers)


def make_snapshot(version: int, targets_version: int, targets: bytes, now_s: int, signers: Signers) -> bytes:
    """A snapshot of `targets`."""
    meta = {"targets.json": MetaFile.from_data(targets_version, targets, ["sha256"])}
    return _sign(Snapshot(version=version, expires=_in_days(now_s, LONG_DAYS), meta=meta), signers)


def make_timestamp(
    version: int,
    snapshot_version: int,
    snapshot: bytes,
    days: int,
    now_s: int,
    signers: Signers,
    ahead: Ahead | None = None,
) -> bytes:
    """A timestamp of `snapshot`, valid for `days`; `ahead` is what clients will ask for with it."""
    fields: dict[str, Any] = {DAYS_FIELD: days}
    if ahead is not None:
        blobs = {"manifest": encode_ref(ahead.manifest), "root": encode_ref(ahead.root)}
        fields[names.AHEAD_FIELD] = {"targets": ahead.targets, **blobs}
    timestamp = Timestamp(
        version=version,
        expires=_in_days(now_s, days),
        snapshot_meta=MetaFile.from_data(snapshot_version, snapshot, ["sha256"]),
        unrecognized_fields=fields,
    )
    return _sign(timestamp, signers)


def renew_timestamp(data: bytes, days: int | None, now_s: int, signers: Signers) -> bytes:
    """The next timestamp of the same snapshot, valid for `days`, or as long as this one was."""
    timestamp: Timestamp = Metadata[Timestamp].from_bytes(data).signed
    days = days or days_of(data)
    timestamp.version += 1
    timestamp.expires = _in_days(now_s, days)
    timestamp.unrecognized_fields[DAYS_FIELD] = days
    return _sign(timestamp, signers)


def days_of(timestamp: bytes) -> int:
    """How long a timestamp was signed for."""
    days = Metadata.from_bytes(timestamp).signed.unrecognized_fields.get(DAYS_FIELD)
    return days if isinstance(days, int) and 0 < days < LONG_DAYS else TIMESTAMP_DAYS


def version_of(data: bytes) -> int:
    """The version of any metadata."""
    version: int = Metadata.from_bytes(data).signed.version
    return version


def _sign(signed: Any, signers: Signers) -> bytes:
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return _encode(metadata)


def _encode(metadata: Metadata[Any]) -> bytes:
    return metadata.to_bytes(JSONSerializer(compact=False))


def _in_days(now_s: int, days: int) -> datetime:
    return datetime.fromtimestamp(now_s, UTC) + timedelta(days=days)
