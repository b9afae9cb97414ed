"""The blobs that targets speak of: manifests, tags, and whatever later writers sign beside them."""

import json
from typing import Any

import msgspec

from cvfs.errors import FormatError, StatusError
from cvfs.format.documents import RefDocument
from cvfs.model import BlobRef
from cvfs.trust import names
from publisher.repository.head import Head
from publisher.signing import metadata
from publisher.store import Store


def signed_blobs(store: Store, head: Head) -> set[BlobRef]:
    """What all versions of the targets name, as far as they are there: a reader may be at any of them still."""
    found = set[BlobRef]()
    for version in range(1, metadata.version_of(head.chain.bundle.targets) + 1):
        try:
            data = store.get_metadata(names.metadata_path("targets", version), names.MAX_TARGETS_BYTES)
        except StatusError:
            continue
        found |= _blobs(data)
    return found | _blobs(head.chain.bundle.targets)


def _blobs(targets: bytes) -> set[BlobRef]:
    """Targets without a blob are nothing of ours; a broken file names none, since no reader takes it."""
    try:
        named: Any = list(json.loads(targets)["signed"]["targets"].values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return set()
    found = set[BlobRef]()
    for target in named:
        try:
            found.add(msgspec.convert(target["custom"]["blob"], RefDocument).blob_ref())
        except (KeyError, TypeError, msgspec.ValidationError, FormatError):
            continue
    return found
