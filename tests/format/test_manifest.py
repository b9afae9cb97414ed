"""Manifests. What must be refused is in the vectors."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cvfs.errors import FormatError
from cvfs.format.blob import digest
from cvfs.format.history import ancestors_after
from cvfs.format.manifest import check_repository_name, decode_manifest, encode_manifest
from cvfs.limits import MAX_BLOB_BYTES
from cvfs.model import Ancestor, BlobRef, Digest, Manifest, Summary
from tests.format import independent_reader

U63 = (1 << 63) - 1
sizes = st.tuples(st.integers(1, MAX_BLOB_BYTES), st.integers(1, MAX_BLOB_BYTES)).map(sorted)
refs = st.builds(lambda id_, pair: BlobRef(digest(id_), *pair), st.binary(max_size=2), sizes)
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
manifests = st.builds(
    Manifest,
    repository=st.lists(labels, min_size=1, max_size=4).map(".".join),
    revision=st.integers(0, U63),
    published_s=st.integers(0, U63),
    root=refs,
    level=st.integers(0, 16),
    summary=st.builds(Summary, entries=st.integers(1, U63), size_bytes=st.integers(0, U63)),
    parent=st.none() | refs,
    message=st.text(max_size=50),
)
manifests |= manifests.filter(lambda one: one.revision < U63).map(
    lambda one: replace(one, revision=one.revision + 1, parent=one.root, ancestors=ancestors_after(one, one.root))
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(manifests)
def test_round_trip(manifest: Manifest) -> None:
    data = encode_manifest(manifest)
    assert decode_manifest(data) == manifest
    assert independent_reader.read_manifest(data)["message"] == manifest.message


@given(manifests, st.dictionaries(st.text(max_size=8).map("x-".__add__), json_values, max_size=3))
def test_unknown_keys_change_nothing(manifest: Manifest, unknown: dict[str, object]) -> None:
    document = json.loads(encode_manifest(manifest))
    document["root"] |= unknown
    assert decode_manifest(json.dumps(document | unknown).encode()) == manifest


@given(manifests, st.data())
def test_truncated_or_followed_by_more(manifest: Manifest, data: st.DataObject) -> None:
    whole = encode_manifest(manifest).rstrip()
    for wrong in (whole[: data.draw(st.integers(0, len(whole) - 1))], whole + b"{}", whole + b"\0"):
        with pytest.raises(FormatError):
            decode_manifest(wrong)


@given(manifests, st.data())
def test_readers_agree_on_changed_bytes(manifest: Manifest, data: st.DataObject) -> None:
    whole = encode_manifest(manifest)
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:at] + data.draw(st.binary(max_size=2)) + whole[at + 1 :]
    assert_readers_agree(changed)


@given(manifests, st.data(), json_values)
def test_readers_agree_on_changed_members(manifest: Manifest, data: st.DataObject, value: object) -> None:
    document = json.loads(encode_manifest(manifest))
    target = data.draw(
        st.sampled_from([document, document["root"], document["parent"] or document, *document["ancestors"]])
    )
    target[data.draw(st.sampled_from(sorted(target)))] = value
    assert_readers_agree(json.dumps(document).encode())


def assert_readers_agree(data: bytes) -> None:
    try:
        decode_manifest(data)
    except FormatError:
        with pytest.raises(independent_reader.Refused):
            independent_reader.read_manifest(data)
    else:
        independent_reader.read_manifest(data)


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_manifest(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"message": "m" * 4097},
        {"message": "\udcff"},
        {"repository": "No Name"},
        {"revision": -1},
        {"level": 17},
        {"ancestors": (Ancestor(9, 0, BlobRef(Digest(bytes(32)), 1, 1)),)},
    ],
)
def test_what_no_reader_takes_is_not_written(wrong: dict[str, object]) -> None:
    ref = BlobRef(Digest(bytes(32)), 1, 1)
    manifest = Manifest("a.b", 1, 0, ref, 0, Summary(1, 0), ref, "m" * 4096)
    assert decode_manifest(encode_manifest(manifest)) == manifest
    with pytest.raises(FormatError):
        encode_manifest(replace(manifest, **wrong))


def test_unknown_version_is_named_before_anything_else_is_read() -> None:
    with pytest.raises(FormatError, match="format version 2"):
        decode_manifest(b'{"format": 2, "root": "something else"}')
    with pytest.raises(FormatError, match="post-quantum"):
        decode_manifest(b'{"format": 1, "features": ["post-quantum"], "root": "something else"}')


def test_error_is_one_line() -> None:
    with pytest.raises(FormatError) as caught:
        decode_manifest(b"\n<html>\n")
    assert "\n" not in str(caught.value)
    with pytest.raises(FormatError) as caught:
        decode_manifest(b'{"format": 1, "features": ["a\\nb"]}')
    assert "\n" not in str(caught.value)


def test_name_is_checked_in_no_time() -> None:
    for name in ("a" * 254 + "!", "a-" * 127 + "!", "a." * 127 + "!", "-" * 255):
        with pytest.raises(FormatError):
            check_repository_name(name)
