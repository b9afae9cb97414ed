"""Tags: names for revisions, read and changed. A change is signed as a revision is, and makes none."""

from cvfs.errors import ConfigError, FormatError, StoreError
from cvfs.format.blob import seal
from cvfs.format.tags import Tags, check_tag_name, decode_tags, encode_tags
from cvfs.limits import MAX_TAGS_BYTES
from cvfs.model import Ancestor
from cvfs.trust import names
from cvfs.trust.targets import find_target
from publisher.repository.head import Head, read_own_head
from publisher.repository.head_update import online_signers, swap
from publisher.repository.history import find_revision, read_blob, read_manifest
from publisher.repository.reachability import check_complete
from publisher.signing import metadata
from publisher.signing.keys import Keys
from publisher.store import Store


def read_tags(store: Store, head: Head) -> Tags:
    """The tags that `head` has. Raises StoreError, TrustError, IntegrityError, FormatError."""
    signed = find_target(head.chain.bundle.targets, names.TAGS, MAX_TAGS_BYTES)
    if signed is None:
        return {}
    plain = read_blob(store, signed.blob)
    if not signed.matches(plain):
        raise FormatError(f"{store.location}: the targets contradict themselves about the tags")
    return decode_tags(plain)


def find_named(store: Store, head: Head, text: str) -> Ancestor:
    """The revision that a number or a tag means. Raises StoreError: there is none."""
    if text.isascii() and text.isdigit():
        return find_revision(store, head.manifest, head.blob, int(text))
    found = read_tags(store, head).get(text)
    if found is None:
        raise StoreError(f"{head.manifest.repository} has no revision or tag {text!r}")
    return found


def set_tag(store: Store, keys: Keys, name: str, number: int | None, now_s: int, *, move: bool = False) -> Ancestor:
    """Let `name` mean revision `number`, or the newest. The caller holds the lock.

    Raises ConfigError: `name` means another one already, and is not to `move`; FormatError: not a name for a tag, or
    too many; StoreError: no such revision, or not all of it is there any more.
    """
    check_tag_name(name)
    head = read_own_head(store, keys)
    newest = head.manifest
    found = find_revision(store, newest, head.blob, newest.revision if number is None else number)
    tags = read_tags(store, head)
    before = tags.get(name)
    if before is not None and before != found and not move:
        raise ConfigError(f"the tag {name!r} means revision {before.revision}: use --move to give it to another")
    if found.revision != newest.revision:
        check_complete(store, read_manifest(store, found.manifest))
    if before != found:
        _put(store, head, keys, {**tags, name: found}, now_s)
    return found


def delete_tag(store: Store, keys: Keys, name: str, now_s: int) -> Ancestor:
    """Let `name` mean nothing any more; returns what it meant. The caller holds the lock. Raises StoreError: no such
    tag."""
    head = read_own_head(store, keys)
    tags = dict(read_tags(store, head))
    if name not in tags:
        raise StoreError(f"{head.manifest.repository} has no tag {name!r}")
    found = tags.pop(name)
    _put(store, head, keys, tags, now_s)
    return found


def _put(store: Store, head: Head, keys: Keys, tags: Tags, now_s: int) -> None:
    plain = encode_tags(tags)
    ref, stored = seal(plain)
    signers = online_signers(keys, head.chain.bundle.root)
    store.put_blob(ref, stored)
    before = head.chain.bundle.targets

    def make(version: int) -> bytes:
        return metadata.make_tags_target(version, ref, plain, now_s, signers["targets"], before)

    swap(store, head, make, signers, now_s)
