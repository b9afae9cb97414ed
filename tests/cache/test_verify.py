"""Verifying a cache: what is damaged goes, what could not be looked at stays."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvfs import flock
from cvfs.cache import Cache
from cvfs.cache import verify as verify_module
from cvfs.cache.leases import Leases
from cvfs.cache.shards import CachedFile, list_all
from cvfs.cache.verify import Verifier
from cvfs.errors import CacheError
from cvfs.format.blob import digest
from cvfs.model import BlobRef, Location
from tests.command import wait_until

DATA = b"some bytes" * 1000


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache")
    cache.objects.store(digest(DATA), DATA)
    yield cache
    cache.close()


def verifier(cache: Cache) -> Verifier:
    return Verifier(cache, lambda files, size_bytes: None)


def refuse(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_: CachedFile) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(verify_module, "_read", read)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EACCES])
def test_what_cannot_be_read_now_is_not_called_damaged(
    cache: Cache, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(number, monkeypatch)
    with pytest.raises(CacheError, match=os.strerror(number)):
        verifier(cache).run()
    assert cache.objects.load(digest(DATA), len(DATA)) == DATA


def test_bad_sector_is_damage(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(errno.EIO, monkeypatch)
    assert verifier(cache).run().removed == 1
    assert cache.objects.load(digest(DATA), len(DATA)) is None


def test_file_that_is_looked_at_for_eviction_is_not_damaged(cache: Cache) -> None:
    fd = os.open(cache.objects.path(digest(DATA)), os.O_RDONLY)
    assert Leases(cache.directory.path).is_unused(fd)
    result = verifier(cache).run()
    os.close(fd)
    assert result.is_sound
    assert cache.objects.load(digest(DATA), len(DATA)) == DATA


def test_chunk_that_is_being_written_is_not_blanked(cache: Cache) -> None:
    recipe, ref = digest(b"recipe"), BlobRef(digest(DATA), len(DATA), len(DATA))
    chunk = Location(0, len(DATA), ref, 0, digest(DATA))
    work = verifier(cache)
    with cache.quota.reserve([len(DATA)]), open(cache.directory.path / "usage", "rb") as usage:
        cache.large.store(recipe, len(DATA), chunk, DATA[:100])
        [file] = list_all(cache.directory.path, "large")
        checker = threading.Thread(target=work._check_chunk, args=(file, chunk))
        checker.start()
        wait_until(lambda: not flock._is_free(usage.fileno(), 1))
        cache.large.store(recipe, len(DATA), chunk, DATA)
    checker.join()
    assert work.result.is_sound
    assert work.result.size_bytes == len(DATA)
    assert cache.large.load(recipe, chunk) == DATA


def test_chunk_that_is_damaged_is_blanked(cache: Cache) -> None:
    recipe, ref = digest(b"recipe"), BlobRef(digest(DATA), len(DATA), len(DATA))
    chunk = Location(0, len(DATA), ref, 0, digest(DATA))
    cache.large.store(recipe, len(DATA), chunk, DATA[:100])
    [file] = list_all(cache.directory.path, "large")
    for blanked in (1, 1):
        work = verifier(cache)
        work._check_chunk(file, chunk)
        assert work.result.blanked_chunks == blanked
        cache.large.store(recipe, len(DATA), chunk, b"x" + DATA[1:])
