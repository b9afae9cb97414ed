"""Tags. What must be refused is in the vectors, but for what would make them large."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvfs.errors import FormatError
from cvfs.format.tags import check_tag_name, decode_tags, encode_tags
from cvfs.limits import MAX_TAGS, MAX_TAGS_BYTES
from cvfs.model import Ancestor, BlobRef, Digest
from tests.format import independent_reader

ONE = Ancestor(1, 1_700_000_000, BlobRef(Digest(bytes(32)), 16_000_000, 16_000_000))
names = st.from_regex(r"[A-Za-z][A-Za-z0-9._+-]{0,63}", fullmatch=True)
ancestors = st.builds(Ancestor, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.just(ONE.manifest))


@given(st.dictionaries(names, ancestors, max_size=5))
def test_round_trip(tags: dict[str, Ancestor]) -> None:
    data = encode_tags(tags)
    assert decode_tags(data) == tags
    assert independent_reader.read_tags(data)["tags"].keys() == tags.keys()


def test_as_many_as_there_may_be_and_one_more() -> None:
    tags = {f"t{number}": ONE for number in range(MAX_TAGS)}
    data = encode_tags(tags)
    assert decode_tags(data) == tags
    with pytest.raises(FormatError, match="2049 tags are too many"):
        encode_tags({**tags, "more": ONE})
    document = json.loads(data)
    document["tags"]["more"] = document["tags"]["t1"]
    more = json.dumps(document).encode()
    assert len(more) < MAX_TAGS_BYTES
    with pytest.raises(FormatError):
        decode_tags(more)
    with pytest.raises(independent_reader.Refused):
        independent_reader.read_tags(more)


def test_the_longest_names_fit() -> None:
    """So that no tag is refused for the size of the others."""
    longest = Ancestor(2**63 - 1, 2**63 - 1, ONE.manifest)
    tags = {f"{number:04}".ljust(64, "x"): longest for number in range(MAX_TAGS)}
    assert len(encode_tags(tags)) <= MAX_TAGS_BYTES


@given(names, st.text(max_size=3), st.integers(0, 64))
def test_readers_agree_on_names(name: str, text: str, at: int) -> None:
    changed = name[:at] + text + name[at:]
    document = json.dumps({"format": 1, "tags": {changed: json.loads(encode_tags({"x": ONE}))["tags"]["x"]}}).encode()
    try:
        check_tag_name(changed)
    except FormatError:
        for read in (decode_tags, independent_reader.read_tags):
            with pytest.raises((FormatError, independent_reader.Refused)):
                read(document)
    else:
        assert list(decode_tags(document)) == [changed] == list(independent_reader.read_tags(document)["tags"])
