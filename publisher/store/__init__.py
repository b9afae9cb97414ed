"""Stores: where a publisher writes. A directory now; whatever can put an object and swap one conditionally will do."""

from publisher.store.base import HeadMovedError, Store, StoredBlob
from publisher.store.directory import DirectoryStore, create_store, open_store
from publisher.store.dry_run import DryRunStore

__all__ = ["DirectoryStore", "DryRunStore", "HeadMovedError", "Store", "StoredBlob", "create_store", "open_store"]
