"""Names and messages that are printed: they may hold anything."""

from hypothesis import given
from hypothesis import strategies as st

from cvfs.terminal import escape

texts = st.text(st.characters() | st.sampled_from(["\\", "x", "u", "8", "5", "\x85", "\udc85", "\n", "\x1b"]))


@given(texts, texts)
def test_what_is_escaped_is_printable_and_tells_texts_apart(one: str, other: str) -> None:
    assert escape(one).isprintable()
    assert (escape(one) == escape(other)) is (one == other)


def test_escaped() -> None:
    assert escape("plain \u00e9") == "plain \u00e9"
    assert escape("a\nb\\\x1b\x85\udc85\u202e") == r"a\nb\\\x1b\u0085\x85\u202e"
