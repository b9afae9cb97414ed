"""Removing paths of a repository: a new revision without them, for which no tree is needed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cvfs.format.blob import seal
from cvfs.format.manifest import check_message
from cvfs.format.tree import Root, edit
from cvfs.model import BlobRef, Manifest
from publisher.repository.head import read_own_head
from publisher.repository.head_update import advance, next_manifest, online_signers
from publisher.repository.pages import PageLoader
from publisher.repository.subtree import removal
from publisher.signing.keys import Keys
from publisher.state.last_published import LastPublished
from publisher.store import Store


def remove(
    store: Store,
    keys: Keys,
    state: Path,
    paths: Sequence[bytes],
    message: str,
    now_s: int,
    published_s: int,
    warn: Callable[[str], None],
) -> Manifest:
    """Make a new revision without `paths` and all below them. The caller holds the lock. `warn` is told what goes wrong
    when it is published.

    Raises PublishError: one of them is not there; StoreError; TrustError (the store is not ours, or was rolled back
    beneath us); ConfigError (keys); FormatError: not a message.
    """
    check_message(message)
    last = LastPublished(state, store)
    head = last.check(read_own_head(store, keys))
    signers = online_signers(keys, head.chain.bundle.root)
    pages = PageLoader(store)

    def put(plain: bytes) -> BlobRef:
        ref, stored = seal(plain)
        store.put_blob(ref, stored)
        return ref

    manifest = head.manifest
    root = Root(manifest.root, manifest.level, manifest.summary)
    tree = pages.tree(manifest)
    for path in paths:
        root = edit(tree, pages, put, removal(tree, path, published_s), path)
        tree = pages.tree_at(root)
    made = next_manifest(head, root, published_s, message)
    last.keep(advance(store, head, made, signers, now_s), warn)
    return made
