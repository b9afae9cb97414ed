"""Ways to earlier revisions: what a manifest names, and how many have to be read to find any other."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvfs.errors import FormatError
from cvfs.format.blob import digest
from cvfs.format.history import Compare, ancestors_after, check_step, next_step
from cvfs.format.manifest import decode_manifest, encode_manifest
from cvfs.model import Ancestor, BlobRef, Digest, Manifest, Summary

COUNT = 1500
ROOT = BlobRef(Digest(bytes(32)), 10, 10)
EPOCH_S = 1_000_000


def make_history(count: int, *, names_ancestors: bool = True) -> tuple[list[Manifest], dict[BlobRef, Manifest]]:
    """Revisions 0 to `count` - 1, two of each moment."""
    made: list[Manifest] = []
    by_ref: dict[BlobRef, Manifest] = {}
    ref: BlobRef | None = None
    for number in range(count):
        ancestors = ancestors_after(made[-1], ref) if ref is not None and names_ancestors else ()
        published_s = EPOCH_S + number // 2 * 10
        manifest = Manifest("a.b", number, published_s, ROOT, 0, Summary(1, 0), ref, "", ancestors)
        ref = BlobRef(digest(b"%d" % number), 100, 200)
        by_ref[ref] = manifest
        made.append(manifest)
    return made, by_ref


MADE, BY_REF = make_history(COUNT)


def search(newest: Manifest, by_ref: dict[BlobRef, Manifest], compare: Compare) -> tuple[Manifest | None, int]:
    """What is found, and how many manifests were read for it."""
    manifest, count = newest, 0
    while compare(Ancestor(manifest.revision, manifest.published_s, ROOT)) > 0:
        step = next_step(manifest, compare)
        if step is None:
            return None, count
        found = by_ref[step.manifest]
        check_step(manifest, found, step)
        manifest, count = found, count + 1
    return manifest, count


def by_number(wanted: int) -> Compare:
    return lambda each: (each.revision > wanted) - (each.revision < wanted)


def by_time(at_s: int) -> Compare:
    return lambda each: 1 if each.published_s > at_s else -1


@pytest.mark.parametrize("newest", [0, 1, 15, 16, 17, 255, 256, 257, 1000, COUNT - 1])
def test_every_revision_is_found_in_few_steps(newest: int) -> None:
    most = math.ceil(math.log(max(newest, 2), 16)) + 1
    for wanted in range(newest + 1):
        found, count = search(MADE[newest], BY_REF, by_number(wanted))
        assert found is MADE[wanted]
        assert count <= most, (wanted, count)


@given(st.integers(0, COUNT - 1), st.integers(-5, COUNT * 5 + 5))
def test_by_time_the_newest_not_after_it_is_found(newest: int, offset_s: int) -> None:
    found, count = search(MADE[newest], BY_REF, by_time(EPOCH_S + offset_s))
    fitting = [each for each in MADE[: newest + 1] if each.published_s <= EPOCH_S + offset_s]
    assert found == (fitting[-1] if fitting else None)
    assert count <= 5


def test_what_is_named_is_few() -> None:
    assert max(len(each.ancestors) for each in MADE) <= 15 * 3 + 1
    longest = max(MADE, key=lambda each: len(each.ancestors))
    assert len(encode_manifest(longest)) < 12_000
    assert [each.revision for each in MADE[18].ancestors] == [0, 16, 17]
    assert [each.revision for each in MADE[1].ancestors] == [0]
    assert MADE[0].ancestors == ()


def test_manifests_with_them_can_be_read() -> None:
    for number in (0, 1, 16, 17, 300, COUNT - 1):
        assert decode_manifest(encode_manifest(MADE[number])) == MADE[number]


def test_without_named_ancestors_parents_lead_there() -> None:
    made, by_ref = make_history(40, names_ancestors=False)
    assert search(made[-1], by_ref, by_number(7)) == (made[7], 32)
    assert search(made[-1], by_ref, by_time(EPOCH_S - 1)) == (None, 39)


def test_a_history_that_lies_is_refused() -> None:
    newest, step = MADE[20], Ancestor(16, MADE[16].published_s, ROOT)
    check_step(newest, MADE[16], step)
    for lie in (MADE[20], MADE[21], MADE[15], MADE[18]):
        with pytest.raises(FormatError, match="names what is not an earlier one"):
            check_step(newest, lie, step)
