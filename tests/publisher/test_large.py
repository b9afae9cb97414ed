"""Large files: chunks that depend on the bytes alone, holes, location pages, and a bounded memory."""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvfs.model import Record
from publisher.source.large_files import GRAIN_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES
from tests.publisher.stores import Store, command, environment
from tests.trees import snapshot

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def _only(store: Store) -> Record:
    [record] = [record for record in store.records() if record.entry.is_regular]
    return record


def _sparse(path: Path, size: int, pieces: dict[int, bytes]) -> None:
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)


def test_chunks_are_within_their_sizes_and_cover_the_data(tmp_path: Path, store: Store) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/f").write_bytes(_noise(40 * MIB + 12345))
    counts = store.publish(tmp_path / "tree").counts
    locations = list(store.locations(_only(store)))
    assert sum(location.length for location in locations) == 40 * MIB + 12345
    assert all(MIN_CHUNK_BYTES <= location.length <= MAX_CHUNK_BYTES for location in locations[:-1])
    assert counts.packs <= len(locations)
    assert store.snapshot() == snapshot(tmp_path / "tree", count_links=True)


def test_an_insertion_keeps_the_other_chunks(tmp_path: Path, store: Store) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    data = _noise(30 * MIB)
    (tree / "f").write_bytes(data)
    store.publish(tree)
    (tree / "f").write_bytes(data[: 10 * MIB] + b"inserted" + data[10 * MIB :])
    counts = store.publish(tree).counts
    assert counts.packed_bytes < 6 * MIB
    assert store.snapshot() == snapshot(tree, count_links=True)


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(0, 3400), st.integers(1, 600_000)), max_size=6), st.integers(4 * MIB + 1, 14 * MIB)
)
def test_a_sparse_file_is_published_like_the_same_bytes_written_out(pieces: list[tuple[int, int]], size: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        written = {block * 4096: _noise(min(n, max(size - block * 4096, 0))) for block, n in pieces}
        stores = []
        for name in ("sparse", "full"):
            (top / name).mkdir()
            _sparse(top / name / "f", size, written)
            if name == "full":
                (top / name / "f").write_bytes((top / name / "f").read_bytes())
            os.utime(top / name / "f", ns=(0, 0))
            os.utime(top / name, ns=(0, 0))
            stores.append(Store(top / f"store-{name}"))
            stores[-1].publish(top / name)
        assert stores[0].manifest == stores[1].manifest
        assert stores[0].snapshot() == snapshot(top / "full", count_links=True)


def test_five_sparse_gibibytes_take_seconds_and_nearly_no_space(tmp_path: Path, store: Store) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    size, end = 5 << 30, _noise(100_000)
    _sparse(tree / "f", size, {0: b"start", size - len(end): end})
    started_s = time.monotonic()
    counts = store.publish(tree).counts
    assert time.monotonic() - started_s < 20
    assert counts.packed_bytes <= 2 * GRAIN_BYTES
    assert counts.read_bytes == size
    first, *_, last = store.locations(_only(store))
    assert first.object_offset == 0
    assert last.object_offset + last.length == size
    again = store.publish(tree)
    assert (again.is_published, again.counts.files_read) == (False, 0)


def test_nothing_but_zeros(tmp_path: Path, store: Store) -> None:
    (tmp_path / "tree").mkdir()
    _sparse(tmp_path / "tree/f", 6 * MIB + 1, {})
    counts = store.publish(tmp_path / "tree").counts
    assert counts.packs == 0
    assert not list(store.locations(_only(store)))
    assert store.snapshot() == snapshot(tmp_path / "tree", count_links=True)
    assert not store.publish(tmp_path / "tree").is_published


def test_very_many_chunks_go_into_location_pages(tmp_path: Path, store: Store) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    grain = _noise(GRAIN_BYTES)
    _sparse(tree / "f", 2400 * GRAIN_BYTES, {2 * i * GRAIN_BYTES: grain[i:] for i in range(1100)})
    store.publish(tree)
    record = _only(store)
    assert not record.content.locations
    assert len(record.content.location_pages) == 2
    assert len(list(store.locations(record))) == 1100
    assert store.snapshot() == snapshot(tree, count_links=True)
    (tree / "other").touch()
    assert store.publish(tree).counts.files_read == 1
    os.rename(store.state, store.state.with_name("lost"))
    (tree / "other").unlink()
    counts = store.publish(tree).counts
    assert (counts.files_read, counts.packs) == (1, 0)


def test_memory_does_not_grow_with_a_file(tmp_path: Path, store: Store) -> None:
    (tmp_path / "tree").mkdir()
    block = _noise(8 * MIB)
    with open(tmp_path / "tree/f", "wb") as file:
        file.writelines(block[number:] for number in range(50))
    arguments = [*command("publish", store.path, tmp_path / "tree", "--state", store.state), "--quiet"]
    # Started by a small process: what its parent held at the fork counts as a process's own maximum.
    measure = "import os, sys; print(os.wait4(os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:]), 0)[2].ru_maxrss)"
    line = [sys.executable, "-c", measure, *arguments]
    outcome = subprocess.run(line, env=environment(), check=True, capture_output=True)
    assert outcome.stderr == b""
    assert 30 * 1024 < int(outcome.stdout) < 300 * 1024
