"""The revisions before the head of a store: their manifests, and blobs of any kind."""

from collections.abc import Iterator

from cvfs.errors import StoreError
from cvfs.format.blob import blob_path, unseal
from cvfs.format.history import check_step, next_step
from cvfs.format.manifest import decode_manifest
from cvfs.model import Ancestor, BlobRef, Manifest
from publisher.store import Store


def read_manifest(store: Store, ref: BlobRef) -> Manifest:
    """An older manifest. Raises StoreError, IntegrityError, FormatError."""
    return decode_manifest(read_blob(store, ref))


def read_blob(store: Store, ref: BlobRef) -> bytes:
    """The verified plain bytes of a blob."""
    return unseal(ref, store.get_blob(ref), f"{store.location}/{blob_path(ref.id)}")


def revisions(store: Store, head: Manifest) -> Iterator[Manifest]:
    """The head and the revisions before it, newest first."""
    manifest: Manifest | None = head
    while manifest is not None:
        yield manifest
        manifest = None if manifest.parent is None else read_manifest(store, manifest.parent)


def find_revision(store: Store, head: Manifest, ref: BlobRef, number: int) -> Ancestor:
    """Revision `number`, of which `head`, stored as `ref`, is the newest. Raises StoreError: there is none."""
    manifest, found = head, Ancestor(head.revision, head.published_s, ref)
    while found.revision > number:
        step = next_step(manifest, lambda each: each.revision - number)
        if step is None:
            break
        earlier = read_manifest(store, step.manifest)
        check_step(manifest, earlier, step)
        manifest, found = earlier, Ancestor(earlier.revision, earlier.published_s, step.manifest)
    if found.revision != number:
        raise StoreError(f"{head.repository} has no revision {number}; the newest is {head.revision}")
    return found
