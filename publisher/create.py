"""Making a store: an empty repository at revision 0."""

import stat

from cvfs.format.blob import seal
from cvfs.format.manifest import check_repository_name, encode_manifest
from cvfs.format.tree import build
from cvfs.model import NO_CONTENT, BlobRef, Entry, Manifest, Record
from publisher.store import DirectoryStore, create_store


def create(location: str, name: str, published_s: int) -> DirectoryStore:
    """Make `location` the store of an empty repository. Raises FormatError (bad name), StoreError."""
    check_repository_name(name)
    store = create_store(location)

    def put(plain: bytes) -> BlobRef:
        ref, stored = seal(plain)
        store.put_blob(ref, stored)
        return ref

    mode = stat.S_IFDIR | 0o755
    mtime_ns = published_s * 1_000_000_000
    root_entry = Entry(b"", mode, 0, 0, mtime_ns, 0, 2, 0, 0, b"", b"", ())
    root = build([Record(b"", root_entry, NO_CONTENT)], put)
    manifest = Manifest(name, 0, published_s, root.page, root.level, root.summary, None)
    store.sync()
    store.write_head(encode_manifest(manifest))
    return store
