"""Revisions as users name them: by number or tag."""

from typing import TYPE_CHECKING

from cvfs.errors import StoreError
from publisher.store import DirectoryStore

if TYPE_CHECKING:
    from cvfs.model import Manifest
    from publisher.repository.head import Head


def find_manifest(store: DirectoryStore, head: "Head", text: str) -> "Manifest":
    """The revision that a number or a tag means. Raises StoreError: there is none."""
    from publisher.repository.history import find_revision, read_manifest
    from publisher.repository.tags import read_tags

    if text.isascii() and text.isdigit():
        return read_manifest(store, find_revision(store, head.manifest, head.blob, int(text)).manifest)
    found = read_tags(store, head).get(text)
    if found is None:
        raise StoreError(f"{head.manifest.repository} has no revision or tag {text!r}")
    return read_manifest(store, found.manifest)
