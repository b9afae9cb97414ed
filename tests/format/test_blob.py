"""Blobs: the hash first, then exactly one frame of exactly the announced size. See also the vectors."""

import subprocess
import sys

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cvfs.errors import FormatError, IntegrityError
from cvfs.format import blob
from cvfs.format.blob import blob_path, digest, seal, unseal
from cvfs.limits import MAX_BLOB_BYTES
from cvfs.model import BlobRef, Digest
from tests.format import independent_reader
from tests.format.make_vectors import block, frame

plains = st.one_of(st.binary(min_size=1, max_size=300), st.binary(min_size=1, max_size=8).map(lambda data: data * 500))


@given(plains, st.sampled_from([None, 1, 19]))
def test_round_trip(plain: bytes, level: int | None) -> None:
    ref, stored = seal(plain, None if level is None else zstandard.ZstdCompressor(level))
    assert len(stored) <= len(plain)
    assert unseal(ref, stored, "test") == plain
    assert independent_reader.unseal(independent_reader.Ref(ref.id, ref.stored_size, ref.plain_size), stored) == plain


@given(plains, st.data())
def test_any_other_bytes_are_wrong_bytes(plain: bytes, data: st.DataObject) -> None:
    ref, stored = seal(plain)
    at = data.draw(st.integers(0, len(stored) - 1))
    flipped = stored[:at] + bytes([stored[at] ^ data.draw(st.integers(1, 255))]) + stored[at + 1 :]
    for wrong in (flipped, stored[:at], stored + b"\0", b""):
        with pytest.raises(IntegrityError) as caught:
            unseal(ref, wrong, "http://mirror")
        assert "http://mirror" in str(caught.value)


def test_nothing_is_decompressed_before_its_hash_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    ref, stored = seal(bytes(1000))
    monkeypatch.setattr(blob, "zstandard", None)
    with pytest.raises(IntegrityError):
        unseal(ref, stored[:-1] + b"\1", "test")
    with pytest.raises(AttributeError):
        unseal(ref, stored, "test")


@given(st.binary(max_size=60), st.booleans(), st.integers(1, 2000))
def test_a_publisher_can_only_cause_a_format_error(data: bytes, magic: bool, plain_size: int) -> None:
    """Bytes that are the named ones, and whatever else."""
    stored = b"\x28\xb5\x2f\xfd" * magic + data
    check_both_readers(stored, plain_size)


@given(plains, st.data())
def test_a_broken_frame_is_a_format_error(plain: bytes, data: st.DataObject) -> None:
    stored = data.draw(st.sampled_from([zstandard.compress(plain), frame(plain)]))
    at = data.draw(st.integers(0, len(stored) - 1))
    changed = stored[:at] + bytes([data.draw(st.integers(0, 255))]) + stored[at + 1 :]
    check_both_readers(data.draw(st.sampled_from([changed, stored[:at], stored + changed])), len(plain))


def check_both_readers(stored: bytes, plain_size: int) -> None:
    ref = BlobRef(digest(stored), len(stored), plain_size)
    try:
        theirs = independent_reader.unseal(independent_reader.Ref(ref.id, len(stored), plain_size), stored)
    except independent_reader.Refused:
        with pytest.raises(FormatError):
            unseal(ref, stored, "test")
    else:
        assert unseal(ref, stored, "test") == theirs


_BOMB = """
import resource, sys
from cvfs.errors import FormatError
from cvfs.format.blob import digest, unseal
from cvfs.model import BlobRef
stored = sys.stdin.buffer.read()
ref = BlobRef(digest(stored), len(stored), int(sys.argv[1]))
free = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (8 << 20)
resource.setrlimit(resource.RLIMIT_AS, (free, free))
try:
    unseal(ref, stored, "test")
except FormatError:
    sys.exit(7)
"""


def window_of(log: int, size: int) -> bytes:
    """A frame that says its decoder needs 2^log bytes, cut short so that it cannot be decoded in one go."""
    return b"\x28\xb5\x2f\xfd\x80" + bytes([(log - 10) << 3]) + size.to_bytes(4, "little") + b"\x00\x00\x00"


def gibibyte_of_zeros(announced: int) -> bytes:
    head = b"\x28\xb5\x2f\xfd\xa0" + announced.to_bytes(4, "little")
    return head + block(1, 1 << 17, b"\0") * 8191 + block(1, 1 << 17, b"\0", True)


@pytest.mark.parametrize(
    ("stored", "plain_size"),
    [
        (gibibyte_of_zeros(announced=1 << 30), MAX_BLOB_BYTES),
        (gibibyte_of_zeros(announced=50_000), 50_000),
        (zstandard.compress(bytes(1 << 28)), 100_000),
        (window_of(31, 1000), 1000),
        (window_of(27, 1000), 1000),
        (window_of(41, 1000), 1000),
    ],
    ids=["honest bomb", "lying bomb", "compressed bomb", "window 31", "window 27", "window 41"],
)
def test_bombs_cost_no_memory(stored: bytes, plain_size: int) -> None:
    run = subprocess.run([sys.executable, "-c", _BOMB, str(plain_size)], input=stored, check=False, timeout=60)
    assert run.returncode == 7


def test_limit_is_checked_although_the_frame_agrees() -> None:
    stored = frame(bytes(MAX_BLOB_BYTES + 1))
    with pytest.raises(FormatError, match="impossible sizes"):
        unseal(BlobRef(digest(stored), len(stored), MAX_BLOB_BYTES + 1), stored, "test")


def test_path() -> None:
    assert blob_path(Digest(bytes(range(32)))) == "data/00/" + bytes(range(1, 32)).hex()
