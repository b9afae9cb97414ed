"""Going back: a new revision with the content of an earlier one."""

from collections.abc import Callable
from pathlib import Path

from cvfs.format.manifest import check_message
from cvfs.format.tree import Root
from cvfs.model import Manifest
from publisher.repository.head import read_own_head
from publisher.repository.head_update import advance, next_manifest, online_signers
from publisher.repository.history import find_revision, read_manifest
from publisher.repository.reachability import check_complete
from publisher.signing.keys import Keys
from publisher.state.last_published import LastPublished
from publisher.store import Store


def rollback(
    store: Store, keys: Keys, state: Path, number: int, message: str, now_s: int, warn: Callable[[str], None]
) -> Manifest | None:
    """Make a new revision that is equal to revision `number`; None if the newest is so already. The caller holds the
    lock. `warn` is told what goes wrong when it is published.

    Nothing is undone: the history goes on, and clients follow it as any other. Raises StoreError: there is no such
    revision, or not all of it is there any more; TrustError (the store is not ours, or was rolled back beneath us);
    ConfigError (keys); FormatError: not a message.
    """
    check_message(message)
    last = LastPublished(state, store)
    head = last.check(read_own_head(store, keys))
    signers = online_signers(keys, head.chain.bundle.root)
    found = find_revision(store, head.manifest, head.blob, number)
    old = read_manifest(store, found.manifest)
    if (old.root, old.level) == (head.manifest.root, head.manifest.level):
        return None
    check_complete(store, old)
    root = Root(old.root, old.level, old.summary)
    manifest = next_manifest(head, root, now_s, message or f"Back to revision {number}")
    last.keep(advance(store, head, manifest, signers, now_s), warn)
    return manifest
