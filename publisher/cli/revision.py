"""Revisions as users name them: by number or tag."""

from typing import TYPE_CHECKING

from publisher.store import DirectoryStore

if TYPE_CHECKING:
    from cvfs.model import Manifest
    from publisher.repository.head import Head


def find_manifest(store: DirectoryStore, head: "Head", text: str) -> "Manifest":
    """The revision that a number or a tag means. Raises StoreError: there is none."""
    from publisher.repository.history import read_manifest
    from publisher.repository.tags import find_named

    return read_manifest(store, find_named(store, head, text).manifest)
